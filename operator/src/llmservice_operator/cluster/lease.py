"""The Lease object through which the leader is elected."""

from collections.abc import Mapping
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.kinds import LEASES


class Lease:
    def __init__(
        self, cluster: Cluster, namespace: str, name: str, *, sends_token: bool = False
    ) -> None:
        """`sends_token` tells the metrics servers that the holder sends them its token."""
        self._sends_token = sends_token
        self._cluster = cluster
        self._namespace = namespace
        self._name = name

    async def read_lease(self) -> Manifest | None:
        lease = await self._cluster.read(LEASES, self._namespace, self._name)
        # Any client with rights on Leases may have removed the spec.
        return None if lease is None else {**lease, "spec": lease.get("spec") or {}}

    async def create_lease(self, spec: Mapping[str, object]) -> Manifest:
        """Create the Lease. Raises Conflict when another process created it first."""
        lease = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
        }
        lease = self._with(lease, spec)
        return await self._cluster.write_lease("POST", LEASES.path(self._namespace), lease)

    async def replace_lease(self, lease: Mapping[str, Any], spec: Mapping[str, object]) -> Manifest:
        """Replace the spec of the Lease that was read.

        Raises Conflict if the Lease has changed since.
        """
        path = LEASES.path(self._namespace, self._name)
        return await self._cluster.write_lease("PUT", path, self._with(lease, spec))

    def _with(self, lease: Mapping[str, Any], spec: Mapping[str, object]) -> Manifest:
        """Return a Lease with another spec, and with the annotation about its holder."""
        changed = {**lease, "spec": dict(spec)}
        holder = spec.get("holderIdentity")
        if self._sends_token and holder:
            metadata = lease["metadata"]
            annotations = metadata.get("annotations") or {}
            annotations = {**annotations, names.TOKEN_SENDER_ANNOTATION: holder}
            changed["metadata"] = {**metadata, "annotations": annotations}
        return changed
