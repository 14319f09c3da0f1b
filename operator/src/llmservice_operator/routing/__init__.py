"""Chooses the replica of each request, by the seconds until its first token.

Everything here is pure: callers pass the time, the reports of the replicas, and what happens to the
requests.
"""
