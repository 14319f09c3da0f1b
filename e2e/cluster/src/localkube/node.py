"""Runs a node: containerd, kubelet and kube-proxy, in their own network and mount namespaces.

In its mount namespace, each node has its own folders at the well-known paths, so several nodes can
run on one machine. All mounts (volumes, container roots) disappear with the namespace.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from localkube import archive, registry, waiting
from localkube.cluster import POD_NETWORK, Node
from localkube.control_plane import DNS_SERVICE_ADDRESS
from localkube.errors import CommandFailed

_OWN_FOLDERS = {
    "run-containerd": "/run/containerd",
    "kubelet": "/var/lib/kubelet",
    "cni": "/var/lib/cni",
    "pod-logs": "/var/log/pods",
    "container-logs": "/var/log/containers",
}
"""Folders of the node's state, and the paths at which the node's programs see them."""

_MOUNT_AND_BECOME = """
while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


def cgroup(node: Node) -> str:
    """Return the control group of the node's pods, which is below the cluster's control group."""
    return f"{node.cluster.cgroup}/{node.name}"


def containerd_config(node: Node) -> str:
    """Return containerd's configuration. Its strings are quoted as in JSON, which is valid TOML."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = {json.dumps(str(node.store))}
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
required_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
  address = "/run/containerd/containerd.sock"

[{cri}]
  sandbox_image = {json.dumps(archive.pause_reference())}
  # Without CAP_SYS_RESOURCE no process may be made less likely to be killed for memory.
  restrict_oom_score_adj = true
  # Pods' namespaces are then held inside the node's own mount namespace.
  netns_mounts_under_state_dir = true

[{cri}.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = {json.dumps(str(node.state / "net.d"))}

[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[{cri}.registry]
  config_path = {json.dumps(str(node.state / "certs.d"))}
"""


def cni_config(node: Node) -> dict[str, Any]:
    """Return the configuration of the pod network, which has a bridge per node. Routes of the nodes
    connect the bridges.

    No address is masqueraded, because there is no outside network. So pods see each other's true
    addresses.
    """
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": node.pod_subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    port_mapping = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, port_mapping]}


def kubelet_config(node: Node) -> dict[str, Any]:
    pki = node.cluster.state / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/{node.name}.crt",
        "tlsPrivateKeyFile": f"{pki}/{node.name}.key",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup(node)}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "resolvConf": str(node.state / "resolv.conf"),
        # Images on a developer's disk are large. The kubelet evicts pods only when the disk is
        # almost full, and never deletes an image that a later test needs.
        "evictionHard": {
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "memory.available": "100Mi",
        },
        "imageGCHighThresholdPercent": 100,
        # End-to-end tests wait until pods are gone, so the kubelet checks more often than by
        # default.
        "syncFrequency": "30s",
    }


def kubelet(node: Node) -> list[str]:
    return [
        "kubelet",
        f"--config={node.state / 'kubelet.yaml'}",
        f"--kubeconfig={node.state / 'kubelet.conf'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def kube_proxy(node: Node) -> list[str]:
    return [
        "kube-proxy",
        f"--kubeconfig={node.cluster.state / 'proxy.conf'}",
        f"--hostname-override={node.name}",
        f"--cluster-cidr={POD_NETWORK}.0.0/16",
        "--proxy-mode=nftables",
        # The limits of connection tracking apply to the whole machine, so they stay unchanged.
        "--conntrack-max-per-core=0",
        "--conntrack-min=0",
    ]


def write_configuration(node: Node) -> None:
    state = node.state
    for name in ("net.d", f"certs.d/{registry.ADDRESS}", *_OWN_FOLDERS):
        (state / name).mkdir(parents=True, exist_ok=True)
    node.store.mkdir(parents=True, exist_ok=True)
    (state / "containerd.toml").write_text(containerd_config(node))
    (state / "net.d" / "10-pods.conflist").write_text(json.dumps(cni_config(node)))
    (state / "certs.d" / registry.ADDRESS / "hosts.toml").write_text(
        registry.node_hosts(node.cluster)
    )
    (state / "kubelet.yaml").write_text(yaml.safe_dump(kubelet_config(node)))
    (state / "resolv.conf").write_text(f"nameserver {node.cluster.node(1).address}\n")


def start_containerd(node: Node) -> None:
    """Start containerd, without the containers from an earlier run of the node."""
    _launch_containerd(node)
    leftovers = _ctr(node, "containers", "list", "--quiet").split()
    if leftovers:
        _ctr(node, "containers", "remove", *leftovers)
        # containerd's CRI plugin has already loaded these containers, and would report them to the
        # kubelet. After a restart, it no longer has them.
        node.cluster.stop_daemon(_daemon(node, "containerd"), wait_seconds=10)
        _launch_containerd(node)
    if archive.pause_reference() not in _ctr(node, "images", "list", "--quiet").split():
        import_archive(node, archive.pause_archive())


def import_archive(node: Node, archive_file: Path) -> None:
    """Import the image and its name from an archive into the node, without the registry."""
    _ctr(node, "images", "import", str(archive_file))


def start_kubelet(node: Node) -> None:
    """Start kubelet and kube-proxy. The kubelet must share containerd's mounts."""
    containerd = node.cluster.daemons()[_daemon(node, "containerd")]
    share = ["nsenter", f"--mount=/proc/{containerd}/ns/mnt", "--"]
    node.cluster.start_daemon(_daemon(node, "kubelet"), [*share, *kubelet(node)], node=node)
    node.cluster.start_daemon(_daemon(node, "kube-proxy"), kube_proxy(node), node=node)


def _launch_containerd(node: Node) -> None:
    binds = [part for own, seen in _OWN_FOLDERS.items() for part in (str(node.state / own), seen)]
    prepare = ["sh", "-ec", _MOUNT_AND_BECOME, "sh", *binds, "--"]
    # With slave propagation, an unmount on the machine also takes effect in the node, and no mount
    # of the node appears on the machine.
    unshare = ["unshare", "--mount", "--propagation=slave", "--"]
    start = ["containerd", f"--config={node.state / 'containerd.toml'}", "--log-level=warn"]
    name = _daemon(node, "containerd")
    node.containerd_socket.unlink(missing_ok=True)
    node.cluster.start_daemon(name, [*unshare, *prepare, *start], node=node)
    waiting.until(
        lambda: _answers(node),
        cluster=node.cluster,
        daemon=name,
        what=f"containerd of {node.name} does not answer",
        seconds=60,
    )


def _daemon(node: Node, program: str) -> str:
    return f"{node.name}-{program}"


def _answers(node: Node) -> bool:
    if not node.containerd_socket.exists():
        return False
    return subprocess.run(_ctr_line(node, "version"), capture_output=True).returncode == 0


def _ctr(node: Node, *arguments: str) -> str:
    done = subprocess.run(_ctr_line(node, *arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _ctr_line(node: Node, *arguments: str) -> list[str]:
    return ["ctr", f"--address={node.containerd_socket}", "--namespace=k8s.io", *arguments]
