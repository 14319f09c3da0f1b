"""The work queue, which decides when a worker processes a key and when a failed key is retried.

queue.py is the queue itself, fairness.py shares the workers among groups of keys, and retries.py
limits the rate of the retries. None of these modules accesses Kubernetes. All code runs in one
event loop, so the data structures need no locks.
"""

from llmservice_operator.workqueue.fairness import FairKeys, Shares
from llmservice_operator.workqueue.queue import QueueSettings, WorkQueue
from llmservice_operator.workqueue.retries import RetryRate

__all__ = ["FairKeys", "QueueSettings", "RetryRate", "Shares", "WorkQueue"]
