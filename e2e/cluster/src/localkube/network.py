"""Creates the network of a cluster: a network namespace per node, and a bridge that connects them.

The bridge is in the namespace of the first node. All links are inside these namespaces, so the
machine cannot reach a cluster, and addresses of a cluster do not conflict with those of the
machine. The links are deleted with their namespace.
"""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from localkube import mounts
from localkube.cluster import Cluster, Node
from localkube.errors import CommandFailed

_BRIDGE = "nodes"
_GATEWAY_OFFSET = 254
"""Last number of the default gateway's address. The kubelet needs a default route. No host has this
address, so packets to it are lost."""


def create(cluster: Cluster, nodes: int) -> None:
    """Create the namespaces and links of all nodes. They must not exist yet."""
    members = [cluster.node(i + 1) for i in range(nodes)]
    for node in members:
        _create_namespace(node)
    first = members[0]
    _ip(first, "link", "add", _BRIDGE, "type", "bridge")
    _address(first, _BRIDGE)
    for node in members[1:]:
        port = f"to-{node.name}"
        peer = ["peer", "name", "eth0", "netns", str(node.netns)]
        _ip(first, "link", "add", port, "type", "veth", *peer)
        _ip(first, "link", "set", port, "master", _BRIDGE, "up")
        _address(node, "eth0")
    if nodes == 1:
        # A bridge without a port has no carrier, so the kernel would not use routes over it.
        _ip(first, "link", "add", "port0", "type", "veth", "peer", "name", "port0-end")
        _ip(first, "link", "set", "port0-end", "up")
        _ip(first, "link", "set", "port0", "master", _BRIDGE, "up")
    for node in members:
        for other in members:
            if other != node:
                _ip(node, "route", "add", other.pod_subnet, "via", other.address)


def _create_namespace(node: Node) -> None:
    node.state.mkdir(parents=True, exist_ok=True)
    node.netns.touch()
    _check(["unshare", f"--net={node.netns}", "true"])
    _ip(node, "link", "set", "lo", "up")
    # The first setting enables routing between pods. With the second one, Service addresses also
    # work between pods on the same bridge.
    settings = ["net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"]
    _check(node.cluster.inside(["sysctl", "-qw", *settings], node))


def _address(node: Node, link: str) -> None:
    _ip(node, "addr", "add", f"{node.address}/24", "dev", link)
    _ip(node, "link", "set", link, "up")
    gateway = f"{node.address.rpartition('.')[0]}.{_GATEWAY_OFFSET}"
    _ip(node, "route", "add", "default", "via", gateway)


def _ip(node: Node, *arguments: str) -> None:
    _check(node.cluster.inside(["ip", *arguments], node))


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip()}")


def processes(cluster: Cluster) -> set[int]:
    """Return the ids of all processes in the nodes' namespaces, including open shells."""
    namespaces = set()
    for path in mounts.below(cluster.state):
        with suppress(OSError):
            namespaces.add(path.stat().st_ino)
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # the process has ended meanwhile
            if link.stat().st_ino in namespaces:
                found.add(int(link.parts[2]))
    return found
