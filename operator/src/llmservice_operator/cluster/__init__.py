"""Access to the Kubernetes API. No other package imports a Kubernetes client.

client.py makes the requests, overload.py withholds them during an outage, served.py determines
which kinds are served, foreign.py checks every object, cache.py keeps the objects that the watches
delivered, audit.py compares the cache with the cluster, watching.py delivers events by means of
Kopf through the session of watch_session.py, reflector.py runs all of these, lease.py stores the
leader's Lease, term.py reads the services again after an election, refresh.py reads one object
again, events.py records Events, pod_events.py reads the Events about pods. Manifests are plain
dicts everywhere, because typed models would lose the fields of a newer API server.
"""

from llmservice_operator.cluster.audit import Audit
from llmservice_operator.cluster.cache import (
    Cache,
    Key,
    controller_of,
    is_same_version,
    is_service,
    owner_key,
)
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.cluster.events import EventRecorder
from llmservice_operator.cluster.foreign import understood
from llmservice_operator.cluster.lease import Lease
from llmservice_operator.cluster.pod_events import PodEvents
from llmservice_operator.cluster.reflector import Reflector
from llmservice_operator.cluster.refresh import refresh
from llmservice_operator.cluster.served import ServedKinds
from llmservice_operator.cluster.term import Term

__all__ = [
    "Audit",
    "Cache",
    "Cluster",
    "EventRecorder",
    "Key",
    "Lease",
    "PodEvents",
    "Reflector",
    "ServedKinds",
    "Term",
    "controller_of",
    "is_same_version",
    "is_service",
    "owner_key",
    "refresh",
    "understood",
]
