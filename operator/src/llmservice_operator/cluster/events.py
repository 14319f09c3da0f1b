"""Records Events about an LLMService, which `kubectl describe` shows.

A repeated Event only increases a count, and the number of Events about one object is limited.
"""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import EVENTS

logger = logging.getLogger(__name__)

SERIES_WINDOW = timedelta(minutes=10)
"""Time within which a repeated Event increases a count instead of being written again."""

BURST = 25
REFILL = timedelta(minutes=5)
"""Limit per object: a burst of 25 Events, then one per five minutes, as in client-go."""


@dataclass
class _Series:
    path: str
    count: int
    last: datetime


@dataclass
class _Budget:
    tokens: float
    at: datetime


class EventRecorder:
    def __init__(self, cluster: Cluster, instance: str, now: Callable[[], datetime]) -> None:
        """`instance` is the name of this operator process."""
        self._cluster = cluster
        self._instance = instance
        self._now = now
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._budgets: dict[str, _Budget] = {}
        """Event budgets by the uid of the object. This mapping and `_series` have the latest entry
        at the end, so that the oldest entries are dropped without a search."""

    async def record(self, regarding: Manifest, type_: str, reason: str, message: str) -> None:
        """Write an Event, or increase the count of an equal recent one.

        A failure to write an Event is logged and does not fail the pass.
        """
        now = self._now()
        self._expire(now)
        uid = regarding["metadata"]["uid"]
        key = (uid, type_, reason, message)
        if not self._take(uid, now):
            logger.info("event %s not written: too many for this object", reason)
            return
        try:
            series = self._series.pop(key, None)
            if series is None:
                series = await self._create(regarding, type_, reason, message, now)
            else:
                await self._count_up(series, now)
            self._series[key] = series
        except ClusterError as error:
            logger.warning("event %s could not be written: %s", reason, error)

    async def _create(
        self, regarding: Manifest, type_: str, reason: str, message: str, now: datetime
    ) -> _Series:
        metadata = regarding["metadata"]
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        event = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": type_,
            "reason": reason,
            # The API of Events allows at most 1 KiB for a message.
            "message": message.encode()[:1024].decode(errors="ignore"),
            "count": 1,
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "source": {"component": names.FIELD_MANAGER},
            "reportingComponent": names.FIELD_MANAGER,
            "reportingInstance": self._instance,
        }
        await self._cluster.write("POST", EVENTS.path(metadata["namespace"]), event)
        return _Series(EVENTS.path(metadata["namespace"], name), 1, now)

    async def _count_up(self, series: _Series, now: datetime) -> None:
        change = {"count": series.count + 1, "lastTimestamp": timestamp(now)}
        await self._cluster.write(
            "PATCH", series.path, change, content_type="application/merge-patch+json"
        )
        series.count += 1
        series.last = now

    def _take(self, uid: str, now: datetime) -> bool:
        budget = self._budgets.pop(uid, None) or _Budget(float(BURST), now)
        self._budgets[uid] = budget
        budget.tokens = min(float(BURST), budget.tokens + (now - budget.at) / REFILL)
        budget.at = now
        if budget.tokens < 1:
            return False
        budget.tokens -= 1
        return True

    def _expire(self, now: datetime) -> None:
        while self._series and now - next(iter(self._series.values())).last >= SERIES_WINDOW:
            del self._series[next(iter(self._series))]
        full_again = BURST * REFILL
        while self._budgets and now - next(iter(self._budgets.values())).at >= full_again:
            del self._budgets[next(iter(self._budgets))]
