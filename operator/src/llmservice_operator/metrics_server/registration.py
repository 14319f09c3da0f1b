"""Maintains the APIService that routes requests for external metrics to this server.

A cluster has one APIService `v1beta1.external.metrics.k8s.io`, which may belong to KEDA or another
adapter. A foreign APIService is never changed, and the report names its owner. The ClusterRole of
the release owns the operator's APIService, which is therefore deleted with the release. An
APIService without a server would block every deletion of a namespace, so the operator deletes it
after a while (withdrawal.py).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import ExternalMetrics
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Conflict, Forbidden
from llmservice_operator.external_api import availability, is_ours
from llmservice_operator.kinds import API_SERVICES, CLUSTER_ROLES
from llmservice_operator.metrics_server.certificates import merged_bundle

logger = logging.getLogger(__name__)

API_SERVICE = names.EXTERNAL_METRICS_API
POLL_SECONDS = 5.0
"""Time in seconds between two reads of the APIService. It is one object that is read by name, so a
watch is not worth its cost."""
RETRY_SECONDS = 2.0

NOT_LOOKED_YET = ExternalMetrics(
    is_served=False, message="The metrics server has not read the APIService yet."
)
NOT_READY_YET = ExternalMetrics(
    is_served=False,
    message=f"The APIService {API_SERVICE} does not exist, because no metrics server was ready."
    " A metrics server registers it as soon as it is ready.",
)
NAMESPACES_ONLY = ExternalMetrics(
    is_served=False,
    message="The operator serves only some namespaces and registers no API for the whole cluster,"
    " so a HorizontalPodAutoscaler cannot read its metrics. Choose another provider.",
)
SWITCHED_OFF = ExternalMetrics(
    is_served=False,
    message="The chart value metricsAPI.enabled is false, so a HorizontalPodAutoscaler cannot read"
    " the operator's metrics. Choose the provider KEDA or Direct.",
)


@dataclass(frozen=True)
class Endpoint:
    """The Service object through which the API server reaches the metrics server."""

    namespace: str
    name: str
    port: int

    @property
    def reference(self) -> dict[str, Any]:
        return {"namespace": self.namespace, "name": self.name, "port": self.port}


def build_api_service(endpoint: Endpoint, bundle: str, owner: Manifest | None) -> Manifest:
    """Return the desired APIService. `owner` is the ClusterRole that owns it."""
    metadata: dict[str, Any] = {
        "name": API_SERVICE,
        "labels": {
            names.MANAGED_BY_LABEL: names.FIELD_MANAGER,
            names.PART_OF_LABEL: names.PART_OF,
        },
    }
    if owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": CLUSTER_ROLES.api_version,
                "kind": CLUSTER_ROLES.kind,
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        ]
    return {
        "apiVersion": API_SERVICES.api_version,
        "kind": API_SERVICES.kind,
        "metadata": metadata,
        "spec": {
            "group": names.EXTERNAL_METRICS_GROUP,
            "version": names.EXTERNAL_METRICS_VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": endpoint.reference,
            "caBundle": bundle,
        },
    }


def foreign_owner(live: Mapping[str, Any]) -> ExternalMetrics:
    """Return the state of the external metrics, which names the owner of a foreign APIService."""
    service = live["spec"].get("service")
    owner = f"{service['namespace']}/{service['name']}" if service else "the API server itself"
    return ExternalMetrics(
        is_served=False,
        owner=owner,
        message=f"The APIService {API_SERVICE} belongs to {owner} and is left alone, so a"
        " HorizontalPodAutoscaler cannot read the operator's metrics. Choose the provider KEDA or"
        " Direct.",
    )


class Registration:
    """Keeps the APIService in the desired state while it belongs to the operator."""

    def __init__(
        self,
        cluster: Cluster,
        endpoint: Endpoint,
        owner_name: str,
        authority: Callable[[], bytes],
        now: Callable[[], datetime],
        is_ready: Callable[[], bool],
    ) -> None:
        """`owner_name` is the name of the ClusterRole of the release.

        A missing APIService is registered only while `is_ready` returns True. The API server sends
        no request to a process that is not ready, so the APIService would have no server.

        `authority` returns the certificate authority, in PEM, that clients must trust.
        """
        self.state = NOT_LOOKED_YET
        self.is_available: bool | None = None
        """Whether the API server reaches the server of the APIService, whoever owns it; None before
        the API server has said so, and without an APIService."""
        self._cluster = cluster
        self._endpoint = endpoint
        self._owner_name = owner_name
        self._authority = authority
        self._now = now
        self._is_ready = is_ready
        self._wake = asyncio.Event()

    def requeue(self) -> None:
        """Check the APIService now, because the authority has changed."""
        self._wake.set()

    async def run(self) -> None:
        """Read the APIService and correct it, for ever."""
        while True:
            self._wake.clear()
            wait = POLL_SECONDS
            try:
                live = await self._cluster.read(API_SERVICES, None, API_SERVICE)
            except ClusterError as error:
                # Nothing contradicts the last result, so it stays.
                logger.warning("the APIService cannot be read: %s", error)
            else:
                self.is_available = None if live is None else availability(live)
                wait = await self._try_to_ensure(live)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def _try_to_ensure(self, live: Manifest | None) -> float:
        """Correct the APIService; return the seconds until the next check."""
        try:
            await self._ensure(live)
        except Conflict:
            # Another replica created or changed the APIService first.
            return RETRY_SECONDS
        except ClusterError as error:
            logger.error("the APIService cannot be written: %s", error)
            self._say(
                ExternalMetrics(
                    is_served=False,
                    message=f"The APIService {API_SERVICE} cannot be written: {error}",
                )
            )
            return RETRY_SECONDS
        return POLL_SECONDS

    async def _ensure(self, live: Manifest | None) -> None:
        if live is not None and not is_ours(live, self._endpoint.namespace, self._endpoint.name):
            self._say(foreign_owner(live))
            return
        if live is not None and "deletionTimestamp" in live["metadata"]:
            return
        if live is None and not self._is_ready():
            self._say(NOT_READY_YET)
            return
        bundle = merged_bundle(
            live["spec"].get("caBundle", "") if live else "", self._authority(), self._now()
        )
        owner = await self._owner()
        desired = build_api_service(self._endpoint, bundle, owner)
        if live is None:
            await self._cluster.write("POST", API_SERVICES.path(), desired)
            logger.info("registered %s", API_SERVICE)
        elif _differs(live, desired):
            metadata = {**live["metadata"], **desired["metadata"]}
            path = API_SERVICES.path(name=API_SERVICE)
            await self._cluster.write("PUT", path, {**live, **desired, "metadata": metadata})
            logger.info("updated %s", API_SERVICE)
        self._say(
            ExternalMetrics(
                is_served=True,
                message=f"The APIService {API_SERVICE} sends requests to the metrics server.",
            )
        )

    async def _owner(self) -> Manifest | None:
        """Return the ClusterRole that owns the APIService; None if there is none or the right to
        read it is missing.
        """
        try:
            return await self._cluster.read(CLUSTER_ROLES, None, self._owner_name)
        except Forbidden:
            return None

    def _say(self, state: ExternalMetrics) -> None:
        if state != self.state:
            logger.log(logging.INFO if state.is_served else logging.WARNING, "%s", state.message)
        self.state = state


def _differs(live: Manifest, desired: Manifest) -> bool:
    metadata = live["metadata"]
    labels = desired["metadata"]["labels"]
    return (
        live["spec"] != {**live["spec"], **desired["spec"]}
        or not labels.items() <= (metadata.get("labels") or {}).items()
        or [it["uid"] for it in metadata.get("ownerReferences", [])]
        != [it["uid"] for it in desired["metadata"].get("ownerReferences", [])]
    )
