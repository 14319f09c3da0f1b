"""Deletes the APIService of external metrics while no metrics server is ready.

Kubernetes deletes no namespace of the cluster while an API has no server. A metrics server
registers the APIService again when it serves (decision 28).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from llmservice_operator import names
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Conflict, Forbidden
from llmservice_operator.external_api import has_no_server, is_ours
from llmservice_operator.kinds import API_SERVICES

logger = logging.getLogger(__name__)

API_SERVICE: Final = names.EXTERNAL_METRICS_API
POLL_SECONDS: Final = 30.0
"""Time in seconds between two reads of the APIService."""
AWAY_SECONDS: Final = 300.0
"""Time in seconds for which no metrics server is ready before the APIService is deleted. A rollout
or a drain of a node with both pods takes less."""


class Withdrawal:
    """Deletes the operator's own APIService after the time without a server. Only the leader runs
    this.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        service: str,
        *,
        away_seconds: float = AWAY_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`namespace` and `service` name the Service object of the metrics server."""
        self._cluster = cluster
        self._namespace = namespace
        self._service = service
        self._away_seconds = away_seconds
        self._poll_seconds = poll_seconds
        self._monotonic = monotonic
        self._without_server: tuple[str, float] | None = None
        """UID of the APIService, and the time since when it has had no server."""

    async def run(self) -> None:
        """Check the APIService again and again."""
        is_allowed = True
        while True:
            try:
                await self.check()
                is_allowed = True
            except Forbidden as error:
                self._without_server = None
                if is_allowed:
                    logger.warning(
                        "the operator does not withdraw the APIService %s while no metrics server"
                        " is ready, because it lacks a right: %s",
                        API_SERVICE,
                        error,
                    )
                is_allowed = False
            except ClusterError as error:
                # Nobody knows whether a server was ready meanwhile.
                self._without_server = None
                logger.warning("the APIService %s cannot be checked: %s", API_SERVICE, error)
            await asyncio.sleep(self._poll_seconds)

    async def check(self) -> None:
        """Read the APIService once, and delete it if it has had no server for too long.

        Raises ClusterError if the API server does not answer or refuses.
        """
        live = await self._cluster.read(API_SERVICES, None, API_SERVICE)
        if (
            live is None
            or "deletionTimestamp" in live["metadata"]
            or not is_ours(live, self._namespace, self._service)
            or not has_no_server(live)
        ):
            self._without_server = None
            return
        now, uid = self._monotonic(), live["metadata"]["uid"]
        if self._without_server is None or self._without_server[0] != uid:
            self._without_server = (uid, now)
        if now - self._without_server[1] < self._away_seconds:
            return
        self._without_server = None
        try:
            await self._cluster.delete(live)
        except Conflict:
            # Somebody has just changed it: perhaps a metrics server that is back.
            return
        logger.warning(
            "withdrew the APIService %s, because no metrics server was ready for %d seconds;"
            " a metrics server registers it again",
            API_SERVICE,
            self._away_seconds,
        )
