"""Keeps calibrations in the status of the services, so that learning survives a restart."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.calibration import Calibration
from llmservice_operator.cluster import Cluster, Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.scaling.calibration import has_moved, shortest_period

logger = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
"""Time in seconds after which a round begins no further write, so that it is not late itself. An
upgrade, or the end of an hour, makes the calibrations of all services due in the same round."""


class CalibrationStore:
    """Writes calibrations that have changed, at most once in their shortest period."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds, and limits the time of the writes of a round."""
        self._cluster = cluster
        self._clock = clock
        self._written: dict[str, tuple[float, Calibration]] = {}
        """Time and value of the last write, by the service's uid."""
        self._tried: dict[str, float] = {}
        """Time of the last attempt to write, by the service's uid."""

    async def write(
        self,
        at: float,
        learned: Mapping[Key, Calibration],
        services: Mapping[Key, Manifest],
        *,
        is_last: bool = False,
    ) -> None:
        """Write the calibrations that are due, for about ROUND_SECONDS. A failed write stays due.

        With `is_last`, every calibration that has changed is due, because the next process starts
        with the stored calibration. The caller then limits the time.
        """
        uids = {manifest["metadata"]["uid"] for manifest in services.values()}
        self._written = {uid: it for uid, it in self._written.items() if uid in uids}
        self._tried = {uid: tried for uid, tried in self._tried.items() if uid in uids}
        due = [
            (services[key]["metadata"], calibration)
            for key, calibration in learned.items()
            # Without autoscaling, the calibration is not needed after a restart.
            if key in services
            and "autoscaling" in services[key]["spec"]
            and self._is_due(services[key], calibration, at, is_last)
        ]
        # Writes that fail or are slow must not keep the same other services waiting every time.
        due.sort(key=lambda it: self._tried.get(it[0]["uid"], -math.inf))
        ends = math.inf if is_last else self._clock() + ROUND_SECONDS
        for metadata, calibration in due:
            if self._clock() >= ends:
                break
            self._tried[metadata["uid"]] = at
            await self._write(metadata, calibration, at)

    def _is_due(self, service: Manifest, learned: Calibration, at: float, is_last: bool) -> bool:
        uid, stored = service["metadata"]["uid"], stored_calibration(service)
        if uid not in self._written:
            if stored is None:
                return True
            # Another process wrote the stored calibration, at an unknown time.
            self._written[uid] = at, stored
        written_at, written = self._written[uid]
        if is_last and learned.history_slot != written.history_slot:
            return True
        if not is_last and at - written_at < shortest_period(learned):
            return False
        return stored is None or has_moved(learned, written)

    async def _write(self, metadata: Mapping[str, Any], learned: Calibration, at: float) -> None:
        calibration = learned.model_dump(by_alias=True, mode="json", exclude_none=True)
        try:
            await self._cluster.apply_status(
                {
                    "apiVersion": LLMSERVICES.api_version,
                    "kind": LLMSERVICES.kind,
                    # With the uid, the write cannot reach a new service of the same name.
                    "metadata": {it: metadata[it] for it in ("namespace", "name", "uid")},
                    "status": {"autoscaling": {"calibration": calibration}},
                },
                names.METRICS_SERVER_FIELD_MANAGER,
            )
        except ClusterError as error:
            logger.warning("a calibration was not written: %s", error)
            return
        self._written[metadata["uid"]] = at, learned
        logger.info("wrote the calibration of %s/%s", metadata["namespace"], metadata["name"])


def stored_calibration(service: Manifest) -> Calibration | None:
    """Return the calibration in a service's status; None if it is missing or invalid."""
    autoscaling = service.get("status", {}).get("autoscaling", {})
    try:
        return Calibration.model_validate(autoscaling["calibration"])
    except (KeyError, ValidationError):
        return None
