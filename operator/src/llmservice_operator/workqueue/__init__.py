"""The work queue: which key is processed when, by how many workers, and again after a failure.

queue.py is the queue itself, fairness.py shares the workers among groups of keys, retries.py spaces
out the retries. None of them knows Kubernetes. Everything runs in one event loop, so plain sets
need no locks.
"""

from llmservice_operator.workqueue.fairness import FairKeys, Shares
from llmservice_operator.workqueue.queue import QueueSettings, WorkQueue
from llmservice_operator.workqueue.retries import RetryRate

__all__ = ["FairKeys", "QueueSettings", "RetryRate", "Shares", "WorkQueue"]
