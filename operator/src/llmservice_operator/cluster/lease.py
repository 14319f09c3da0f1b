"""The Lease object through which the leader is elected."""

from collections.abc import Mapping

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.kinds import LEASES


class Lease:
    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
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
            "spec": dict(spec),
        }
        return await self._cluster.write_lease("POST", LEASES.path(self._namespace), lease)

    async def replace_lease(
        self, lease: Mapping[str, object], spec: Mapping[str, object]
    ) -> Manifest:
        """Replace the spec of the Lease that was read.

        Raises Conflict if the Lease has changed since.
        """
        path = LEASES.path(self._namespace, self._name)
        return await self._cluster.write_lease("PUT", path, {**lease, "spec": dict(spec)})
