"""Runs real clients against this server and against stock vLLM, and compares whole replies.

__main__      the command: runs the clients and writes docs/clients.md
catalogue     the clients, each with its script and its lock
environments  the locked environments of the clients, in the cache
servers       this server and stock vLLM, for each kind of model
comparison    what differs between two replies
known         the intended differences, each with its reason
page          docs/clients.md
python, node  a script per client, and the locks
"""
