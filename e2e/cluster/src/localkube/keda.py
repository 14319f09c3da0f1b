"""Runs KEDA's operator and metrics adapter in a local cluster.

They are processes next to the API server and have the administrator's permissions, so a cluster
without nodes can run them. KEDA's resource definitions come from its Go module.
"""

import argparse
import base64
import datetime
from pathlib import Path
from typing import Any

import yaml

from localkube import binaries, pki, waiting
from localkube.cluster import Cluster
from localkube.progress import say, step

NAMESPACE = "keda"
OPERATOR = "keda-operator"
ADAPTER = "keda-adapter"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
GO_MODULE = "github.com/kedacore/keda/v2"
START_SECONDS = 60

GRPC_PORT = 19666
PROBE_PORT = 19081
ADAPTER_PORT = 19443
"""Ports in the first node's network. Neither tests nor pods with host network use them."""


def register(subparsers: Any) -> None:
    """Add this module's commands to the command line."""
    keda = subparsers.add_parser(
        "keda", help="build, start or stop KEDA's operator and metrics adapter"
    )
    actions = keda.add_subparsers(required=True, metavar="ACTION")
    building = actions.add_parser("build", help="build KEDA's programs into the cache")
    building.set_defaults(run=_build)
    starting = actions.add_parser("start", help="start KEDA in the cluster unless it runs")
    starting.set_defaults(run=_start)
    stopping = actions.add_parser("stop", help="stop KEDA and remove its APIService")
    stopping.set_defaults(run=_stop)


def _build(_arguments: argparse.Namespace) -> int:
    binaries.build(binaries.KEDA)
    return 0


def _start(arguments: argparse.Namespace) -> int:
    start(Cluster(arguments.name))
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    stop(Cluster(arguments.name))
    return 0


def start(cluster: Cluster) -> None:
    """Start KEDA and return once its adapter serves external metrics through the API server.

    Raises LocalkubeError with the end of the log if a part of KEDA does not start.
    """
    binaries.build(binaries.KEDA)
    if cluster.daemons().get(ADAPTER):
        say(f"KEDA is already running in cluster {cluster.name}.")
        return
    with step("KEDA's resource definitions"):
        cluster.kubectl("apply", "--server-side", "-f", str(_resource_definitions()))
    folder = cluster.state / "keda"
    address = cluster.node(1).address
    service = f"{ADAPTER}.{NAMESPACE}.svc"
    authority = pki.Authority(folder_of(folder), "ca", datetime.datetime.now(datetime.UTC))
    authority.issue(
        pki.Certificate("tls", "keda", names=["localhost", service], addresses=[address])
    )
    with step("KEDA's operator"):
        cluster.start_daemon(OPERATOR, _operator(folder), environment=_environment(cluster))
        _wait(cluster, OPERATOR, f"http://{address}:{PROBE_PORT}/readyz")
    with step("KEDA's metrics adapter"):
        cluster.start_daemon(ADAPTER, _adapter(cluster, folder), environment=_environment(cluster))
        cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(_objects(folder, address)))
        cluster.kubectl(
            "wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s"
        )


def stop(cluster: Cluster) -> None:
    """Stop KEDA and remove its APIService, which would block the deletion of every namespace."""
    cluster.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found")
    for daemon in (ADAPTER, OPERATOR):
        cluster.stop_daemon(daemon)


def folder_of(path: Path) -> Path:
    """Create a folder for keys, which only the owner of the folder can read; return it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def _resource_definitions() -> Path:
    return binaries.module_folder(binaries.KEDA[0].source, GO_MODULE) / "config" / "crd" / "bases"


def _environment(cluster: Cluster) -> dict[str, str]:
    return cluster.environment() | {
        "POD_NAMESPACE": NAMESPACE,
        "WATCH_NAMESPACE": "",
        "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
    }


def _operator(certificates: Path) -> list[str]:
    return [
        str(binaries.program(OPERATOR)),
        f"--cert-dir={certificates}",
        f"--metrics-service-bind-address=127.0.0.1:{GRPC_PORT}",
        f"--health-probe-bind-address=:{PROBE_PORT}",
        "--metrics-bind-address=0",
    ]


def _adapter(cluster: Cluster, certificates: Path) -> list[str]:
    return [
        str(binaries.program(ADAPTER)),
        f"--secure-port={ADAPTER_PORT}",
        f"--bind-address={cluster.node(1).address}",
        f"--cert-dir={certificates}",
        f"--tls-cert-file={certificates}/tls.crt",
        f"--tls-private-key-file={certificates}/tls.key",
        f"--metrics-service-address=localhost:{GRPC_PORT}",
        f"--port={ADAPTER_PORT + 1}",
        f"--lister-kubeconfig={cluster.kubeconfig}",
        f"--authentication-kubeconfig={cluster.kubeconfig}",
        f"--authorization-kubeconfig={cluster.kubeconfig}",
    ]


def _objects(certificates: Path, address: str) -> list[dict[str, Any]]:
    """Return the Service object of the adapter, and the APIService that refers to it."""
    metadata = {"name": ADAPTER, "namespace": NAMESPACE}
    port = {"name": "https", "protocol": "TCP", "port": ADAPTER_PORT}
    bundle = base64.b64encode((certificates / "ca.crt").read_bytes()).decode()
    group, version = "external.metrics.k8s.io", "v1beta1"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"ports": [port | {"port": 443, "targetPort": ADAPTER_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": ADAPTER}},
            "addressType": "IPv4",
            "ports": [port],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": bundle,
                "service": {"name": ADAPTER, "namespace": NAMESPACE, "port": 443},
            },
        },
    ]


def _wait(cluster: Cluster, daemon: str, url: str) -> None:
    def answers() -> bool:
        done = cluster.exec(
            ["curl", "--silent", "--fail", "--max-time", "2", url], capture_output=True
        )
        return done.returncode == 0

    waiting.until(
        answers, cluster=cluster, daemon=daemon, what="KEDA is not ready", seconds=START_SECONDS
    )
