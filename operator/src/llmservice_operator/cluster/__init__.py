"""Access to the Kubernetes API. No other package imports a Kubernetes client.

client         sends the requests
answers        turns responses that are no objects into errors
overload       withholds requests while the API server is overloaded or unreachable
served         determines which kinds are served
foreign        checks every object from the cluster
cache          keeps the objects that the watches delivered
compact        reduces the memory that these objects take
versions       reads only the versions of listed objects
audit          compares the cache with the cluster
watching       delivers the events of watches by means of Kopf
watch_session  the HTTP session through which Kopf lists and watches
reflector      loads the cache, watches and audits
lease          stores the leader's Lease
term           reads the services again after an election
refresh        reads one object again
events         records Events
pod_events     reads the Events about pods

Manifests are plain dicts everywhere, because typed models would lose the fields of a newer API
server.
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
