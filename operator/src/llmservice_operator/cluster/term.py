"""The LLMServices that a new leader has read since it was elected.

A standby fills its cache from watches, and a watch may stop delivering events without an error. A
leader's first change of a service must not follow from an outdated spec, because such a change
would undo that of the previous leader. So the leader reads each service from the API server once in
its term, before it changes the service. One LIST per namespace reads all services. A service that
the LIST did not contain is read by name.
"""

import logging
from collections.abc import Callable, Sequence

from llmservice_operator.cluster.cache import Cache, Key, object_id
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.cluster.foreign import identity
from llmservice_operator.cluster.refresh import refresh
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import LLMSERVICES

logger = logging.getLogger(__name__)


class Term:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        namespaces: Sequence[str | None],
        enqueue: Callable[[Key], None],
    ) -> None:
        """`enqueue` is called with every service of which the watches missed a change.

        The namespace None means all namespaces.
        """
        self._cluster = cluster
        self._cache = cache
        self._namespaces = namespaces
        self._enqueue = enqueue
        self._unread: set[Key] = set()
        """Cached services that have not been read in this term."""

    async def begin(self) -> None:
        """List every LLMService. Call it once, after the election."""
        self._unread = {object_id(each)[1:] for each in self._cache.of_kind(LLMSERVICES)}
        for namespace in self._namespaces:
            try:
                async for service in self._cluster.list_all(LLMSERVICES, namespace):
                    for key in self._cache.take(service) or ():
                        self._enqueue(key)
                    self._unread.discard(identity(service)[1:])
            except ClusterError as error:
                where = namespace or "the cluster"
                logger.warning("each LLMService of %s is read by itself: %s", where, error)

    async def confirm(self, key: Key) -> None:
        """Make sure that the cached LLMService was read in this term.

        Raises ClusterError when it cannot be read.
        """
        if key not in self._unread:
            return
        await refresh(self._cluster, self._cache, LLMSERVICES, *key)
        self._unread.discard(key)
