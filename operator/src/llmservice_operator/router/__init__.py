"""The processes of a router pod: Envoy, the picker, the forwarder, and the supervisor that runs
them.
"""
