"""Makes the nodes advertise GPUs, so that pods that request GPUs are scheduled and run.

The GPUs exist only as a number, which the scheduler and the kubelet treat like a number of real
GPUs. A kubelet keeps unknown resources in its node's status until it restarts.
"""

import json
from typing import Any

from localkube.cluster import Cluster
from localkube.errors import LocalkubeError

RESOURCE = "nvidia.com/gpu"


def patch(count: int) -> dict[str, Any]:
    """Return the merge patch of a node's status. A count of zero removes the resource."""
    amount = str(count) if count else None
    return {"status": {field: {RESOURCE: amount} for field in ("capacity", "allocatable")}}


def advertise(cluster: Cluster, count: int) -> None:
    if count < 0:
        raise LocalkubeError(f"{count} GPUs are impossible: use the number per node, 0 for none.")
    if not cluster.nodes():
        raise LocalkubeError("This cluster has no nodes: start one without --api-only.")
    for node in cluster.nodes():
        cluster.kubectl(
            "patch",
            "node",
            node.name,
            "--subresource=status",
            "--type=merge",
            f"--patch={json.dumps(patch(count))}",
        )
