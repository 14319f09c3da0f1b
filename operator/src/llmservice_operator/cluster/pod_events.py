"""The Events about a pod. Only these Events show why a node does not start the pod."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.cache import Key
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import EVENTS
from llmservice_operator.workload import LOOK_AGAIN_SECONDS, PodEvent, pod_to_ask_about

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    uid: str
    at: datetime
    events: tuple[PodEvent, ...]


class PodEvents:
    """Reads the Events about a pod that does not start.

    It reads them for one pod per service, and for the same pod at most once a minute.
    """

    def __init__(self, cluster: Cluster, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._now = now
        self._asked: dict[Key, _Asked] = {}

    async def read(self, key: Key, pods: Iterable[Manifest]) -> dict[str, tuple[PodEvent, ...]]:
        """Return a mapping with one entry: the name of the pod that has waited longest, and the
        Events about it, the newest last.

        The mapping is empty if no pod waits too long. If the Events cannot be read, the mapping
        contains the pod without Events. The status then contains less detail, but no error.
        """
        now = self._now()
        pod = pod_to_ask_about(pods, now)
        if pod is None:
            self._asked.pop(key, None)
            return {}
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        asked = self._asked.get(key)
        is_old = asked is None or (now - asked.at).total_seconds() >= LOOK_AGAIN_SECONDS
        if asked is None or is_old or asked.uid != uid:
            asked = self._asked[key] = _Asked(uid, now, await self._list(key[0], name, uid))
        return {name: asked.events}

    def forget(self, key: Key) -> None:
        """Drop the stored Events of a deleted service."""
        self._asked.pop(key, None)

    async def _list(self, namespace: str, name: str, uid: str) -> tuple[PodEvent, ...]:
        try:
            found = await self._cluster.list_about(EVENTS, namespace, uid)
        except ClusterError as error:
            logger.warning("the Events of the pod %s cannot be read: %s", name, error)
            return ()
        texts = ("type", "reason", "message")
        return tuple(
            PodEvent(*(str(each.get(field) or "") for field in texts))
            for each in sorted(found, key=_last_time)
        )


def _last_time(event: Manifest) -> str:
    """Return the time of the Event's last occurrence. Times in the API's format sort correctly as
    texts.
    """
    series, metadata = event.get("series") or {}, event.get("metadata") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        metadata.get("creationTimestamp"),
    )
    return max((str(each) for each in times if each), default="")
