"""Keeps calibrations in the status of the services, so that learning survives a restart."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.calibration import Calibration
from llmservice_operator.cluster import Cluster, Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.scaling.calibration import has_moved, shortest_period

logger = logging.getLogger(__name__)


class CalibrationStore:
    """Writes calibrations that have changed, at most once in their shortest period."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: dict[str, tuple[float, Calibration]] = {}
        """Time and value of the last write, by the service's uid."""

    async def write(
        self,
        at: float,
        learned: Mapping[Key, Calibration],
        services: Mapping[Key, Manifest],
        *,
        is_last: bool = False,
    ) -> None:
        """Write the calibrations that are due. A failed write stays due.

        With `is_last`, every calibration that has changed is due, because the next process starts
        with the stored calibration.
        """
        uids = {manifest["metadata"]["uid"] for manifest in services.values()}
        self._written = {uid: it for uid, it in self._written.items() if uid in uids}
        for key, calibration in learned.items():
            # Without autoscaling, the calibration is not needed after a restart.
            is_scaled = key in services and "autoscaling" in services[key]["spec"]
            period = 0.0 if is_last else shortest_period(calibration)
            if is_scaled and self._is_due(services[key], calibration, at, period):
                await self._write(services[key]["metadata"], calibration, at)

    def _is_due(self, service: Manifest, learned: Calibration, at: float, period: float) -> bool:
        uid, stored = service["metadata"]["uid"], stored_calibration(service)
        if uid not in self._written:
            if stored is None:
                return True
            # Another process wrote the stored calibration, at an unknown time.
            self._written[uid] = at, stored
        written_at, written = self._written[uid]
        if at - written_at < period:
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
