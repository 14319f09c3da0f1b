"""What was learned, kept in the services' status, so that no metrics server starts anew."""

import logging
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import Calibration
from llmservice_operator.cluster import Cluster, Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import LLMSERVICES
from llmservice_operator.metrics_server.report_builder import calibration_of, checkpoint_from
from llmservice_operator.scaling.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

FIELD_MANAGER = "llmservice-metrics-server"
"""Owns status.autoscaling.calibration and nothing else; the operator never sends that field."""

SHORTEST_PERIOD_SECONDS = 600.0
"""Learning moves all the time; the API server need not hear of every move."""


class Checkpoints:
    """Writes what has moved enough, one service at most every ten minutes and once at the end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._written: dict[str, tuple[float, Checkpoint]] = {}
        """By the service's uid: when it was last written, and what."""

    async def write(
        self,
        at: float,
        learned: Mapping[Key, Checkpoint],
        services: Mapping[Key, Manifest],
        *,
        is_last: bool = False,
    ) -> None:
        """Write the checkpoints that are due. One that fails is due again at the next call.

        The last time all that have moved are due: whoever comes next begins with what they say.
        """
        uids = {manifest["metadata"]["uid"] for manifest in services.values()}
        self._written = {uid: it for uid, it in self._written.items() if uid in uids}
        for key, checkpoint in learned.items():
            # Without an autoscaler nobody needs the load after a restart.
            is_scaled = key in services and "autoscaling" in services[key]["spec"]
            period = 0.0 if is_last else SHORTEST_PERIOD_SECONDS
            if is_scaled and self._is_due(services[key], checkpoint, at, period):
                await self._write(services[key]["metadata"], checkpoint, at)

    def _is_due(self, service: Manifest, checkpoint: Checkpoint, at: float, period: float) -> bool:
        uid, stored = service["metadata"]["uid"], stored_checkpoint(service)
        if uid not in self._written:
            if stored is None:
                return True
            # Written before this process began; how long before, nobody knows.
            self._written[uid] = at, stored
        written_at, written = self._written[uid]
        if at - written_at < period:
            return False
        return stored is None or checkpoint.differs_from(written)

    async def _write(self, metadata: Mapping[str, Any], checkpoint: Checkpoint, at: float) -> None:
        calibration = calibration_of(checkpoint).model_dump(by_alias=True, mode="json")
        try:
            await self._cluster.apply_status(
                {
                    "apiVersion": LLMSERVICES.api_version,
                    "kind": LLMSERVICES.kind,
                    # The uid makes it this very service, not a new one that took its name.
                    "metadata": {it: metadata[it] for it in ("namespace", "name", "uid")},
                    "status": {"autoscaling": {"calibration": calibration}},
                },
                FIELD_MANAGER,
            )
        except ClusterError as error:
            logger.warning("a calibration was not written: %s", error)
            return
        self._written[metadata["uid"]] = at, checkpoint
        logger.info("wrote the calibration of %s/%s", metadata["namespace"], metadata["name"])


def stored_checkpoint(service: Manifest) -> Checkpoint | None:
    """Return the checkpoint in a service's status; None when there is none that can be read."""
    autoscaling = service.get("status", {}).get("autoscaling", {})
    try:
        return checkpoint_from(Calibration.model_validate(autoscaling["calibration"]))
    except (KeyError, ValidationError):
        return None
