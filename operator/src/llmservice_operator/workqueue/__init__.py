"""The work queue: it decides when a worker processes which key, and when a failed key is
retried.

queue.py is the queue itself, fairness.py shares the workers among groups of keys, and retries.py
spaces out the retries. None of them knows Kubernetes. Everything runs in one event loop, so plain
sets need no locks.
"""

from llmservice_operator.workqueue.fairness import FairKeys, Shares
from llmservice_operator.workqueue.queue import QueueSettings, WorkQueue
from llmservice_operator.workqueue.retries import RetryRate

__all__ = ["FairKeys", "QueueSettings", "RetryRate", "Shares", "WorkQueue"]
