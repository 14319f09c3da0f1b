"""Loads an image into the nodes: pushes it to the cluster's registry and pulls it on each node.

Layers that the registry or a node already has are not copied again, so a change of the project's
code copies kilobytes.
"""

import subprocess
from collections.abc import Iterable

from localkube import progress
from localkube.cluster import Cluster, Node
from localkube.errors import CommandFailed, LocalkubeError
from localkube.images.builder import Store, require_programs, require_root
from localkube.images.recipes import REGISTRY

PROGRAMS = {"buildah": "buildah", "ctr": "containerd"}


def load(cluster: Cluster, reference: str, nodes: Iterable[Node] | None = None) -> None:
    """Load a built image into the named nodes, or into all of them."""
    require_root()
    require_programs(PROGRAMS)
    if not reference.startswith(f"{REGISTRY}/"):
        raise LocalkubeError(
            f"{reference} cannot be pulled by the nodes: only references that begin with "
            f"{REGISTRY}/ are in their registry. `localkube images build` prints them."
        )
    lacking = [
        node for node in (cluster.nodes() if nodes is None else nodes) if not _has(node, reference)
    ]
    if lacking:
        with progress.step(f"push {reference}"):
            _push(cluster, reference)
    for node in lacking:
        with progress.step(f"pull {reference} on {node.name}"):
            _pull(cluster, node, reference)
            _forget_old_builds(node)


def _push(cluster: Cluster, reference: str) -> None:
    with Store.open(to_read=True) as store:
        if not store.has(reference):
            raise LocalkubeError(f"{reference} is not built. Run: localkube images build all")
        # The fastest level of zstd halves the bytes to write and read, in only a few seconds.
        command = store.command(
            *("push", "--quiet", "--tls-verify=false"),
            *("--compression-format", "zstd", "--compression-level", "1"),
            *(reference, f"docker://{reference}"),
        )
        done = cluster.exec(command, env=store.environment(), capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(f"The push of {reference} failed: {done.stderr.strip()}")


def _has(node: Node, reference: str) -> bool:
    done = _ctr(node, "images", "list", "--quiet", f"name=={reference}")
    if done.returncode:
        raise CommandFailed(f"containerd of {node.name} does not answer: {done.stderr.strip()}")
    return bool(done.stdout.strip())


def _pull(cluster: Cluster, node: Node, reference: str) -> None:
    # `ctr` itself fetches the layers, so it runs in the first node's network, where the registry
    # listens.
    done = _ctr(node, "images", "pull", "--plain-http", reference, inside=cluster)
    if done.returncode:
        raise CommandFailed(f"{node.name} could not pull {reference}: {done.stderr.strip()}")


def _forget_old_builds(node: Node) -> None:
    """Remove the project's images from the node if the store of builds no longer has them.

    This frees disk space. A running container keeps the layers of its image.
    """
    with Store.open(to_read=True) as store:
        kept = store.references()
    held = _ctr(node, "images", "list", "--quiet", f"name~=^{REGISTRY}/llmservice/").stdout.split()
    if old := [reference for reference in held if reference not in kept]:
        _ctr(node, "images", "remove", *old)


def _ctr(
    node: Node, *arguments: str, inside: Cluster | None = None
) -> "subprocess.CompletedProcess[str]":
    command = ["ctr", "--address", str(node.containerd_socket), "--namespace", "k8s.io", *arguments]
    return subprocess.run(
        inside.inside(command) if inside else command, capture_output=True, text=True
    )
