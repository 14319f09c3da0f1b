"""The Kubernetes API, seen by the operator: the only package that knows a Kubernetes client.

client.py makes the requests, served.py finds out which kinds are served, cache.py keeps what the
watches told, audit.py compares the two,
watched.py keeps the objects of one kind for a process that only reads, lease.py stores the
leader's Lease, events.py records Events.
Manifests are plain dicts everywhere: no typed models, so no field of a newer API server is lost.
"""

from llmservice_operator.cluster.audit import Audit
from llmservice_operator.cluster.cache import Cache, Key, controller_of, is_service, owner_key
from llmservice_operator.cluster.client import Cluster, load_configuration
from llmservice_operator.cluster.events import EventRecorder
from llmservice_operator.cluster.lease import Lease
from llmservice_operator.cluster.served import DISCOVERY_PERIOD_SECONDS, ServedKinds
from llmservice_operator.cluster.watched import Watched

__all__ = [
    "DISCOVERY_PERIOD_SECONDS",
    "Audit",
    "Cache",
    "Cluster",
    "EventRecorder",
    "Key",
    "Lease",
    "ServedKinds",
    "Watched",
    "controller_of",
    "is_service",
    "load_configuration",
    "owner_key",
]
