"""Chooses the replica of each request, by the seconds until its first token.

The modules use no clock and no I/O: callers pass the time, the reports of the replicas, and what
happens to the requests.
"""
