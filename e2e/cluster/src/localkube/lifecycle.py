"""Implements the life cycle of a cluster: up, down, status, clean."""

import datetime
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from localkube import (
    binaries,
    cgroups,
    control_plane,
    dns,
    mounts,
    network,
    node,
    paths,
    pki,
    preflight,
    registry,
    waiting,
)
from localkube.cluster import Cluster, all_clusters
from localkube.errors import LocalkubeError
from localkube.progress import say, step

MOST_NODES = 9
_POLITE_SECONDS = 3.0
"""Grace period in seconds for daemons on `down`, so that containerd can close its store."""


def up(cluster: Cluster, *, nodes: int = 1, api_only: bool = False) -> None:
    """Start the cluster and return when it is ready. A running cluster stays unchanged.

    Raises LocalkubeError if the machine lacks a requirement, the options are invalid, the cluster
    runs with other options or programs, or a part does not start.
    """
    if not 1 <= nodes <= MOST_NODES:
        raise LocalkubeError(f"{nodes} nodes: choose between 1 and {MOST_NODES}.")
    if api_only and nodes > 1:
        raise LocalkubeError("--api-only starts no nodes: leave --nodes out.")
    preflight.check(api_only=api_only)
    binaries.build(binaries.modules())
    with cluster.locked():
        if cluster.exists():
            if _runs_as_wanted(cluster, nodes, api_only):
                say(f"Cluster {cluster.name} is running already.")
                return
            with step("Removing the rest of an incomplete cluster"):
                _remove(cluster)
        _start(cluster, nodes, api_only)


def _runs_as_wanted(cluster: Cluster, nodes: int, api_only: bool) -> bool:
    """Return whether the cluster is healthy.

    Raises LocalkubeError if it is healthy but differs from the requested cluster.
    """
    if not healthy(cluster):
        return False
    record = cluster.record()
    if record | _options(nodes, api_only) != record:
        raise LocalkubeError(
            f"Cluster {cluster.name} is running with other options or programs. Remove it first: "
            f"localkube --name {cluster.name} down"
        )
    return True


def healthy(cluster: Cluster) -> bool:
    """Return whether `up` has finished and every daemon that it started is alive."""
    with suppress(LocalkubeError):
        return cluster.record()["complete"] and None not in cluster.daemons().values()
    return False


def _start(cluster: Cluster, nodes: int, api_only: bool) -> None:
    started = time.monotonic()
    say(f"Starting cluster {cluster.name}")
    members = [] if api_only else [cluster.node(i + 1) for i in range(nodes)]
    _write_record(cluster, nodes, api_only, complete=False)
    with step("Namespaces, control groups, certificates"):
        cgroups.create(cluster.cgroup, [each.name for each in members])
        network.create(cluster, nodes)
        _write_configuration(cluster, nodes)
    with step("API server"):
        cluster.start_daemon("etcd", control_plane.etcd(cluster))
        cluster.start_daemon("kube-apiserver", control_plane.api_server(cluster))
        for each in members:
            node.write_configuration(each)
        _wait_for_api_server(cluster)
    manager = control_plane.controller_manager(cluster)
    cluster.start_daemon("kube-controller-manager", manager)
    for each in members:
        with step(f"Container runtime and kubelet of {each.name}"):
            node.start_containerd(each)
            node.start_kubelet(each)
    if members:
        with step("Scheduler, image registry, DNS"):
            cluster.start_daemon("kube-scheduler", control_plane.scheduler(cluster))
            registry.start(cluster)
            dns.start(cluster)
    with step("Controllers"):
        _wait_for_controllers(cluster)
    if members:
        with step("Nodes and DNS ready"):
            _wait_for_nodes(cluster, [each.name for each in members])
            _wait_for_dns(cluster)
    _write_record(cluster, nodes, api_only, complete=True)
    say(f"Cluster {cluster.name} is ready after {time.monotonic() - started:.1f} s")


def _options(nodes: int, api_only: bool) -> dict[str, Any]:
    """Return the part of a cluster's record that these options and the programs determine."""
    programs = sorted(str(binaries.folder(module)) for module in binaries.modules())
    return {"nodes": nodes, "apiOnly": api_only, "programs": programs}


def _write_record(cluster: Cluster, nodes: int, api_only: bool, *, complete: bool) -> None:
    record = {**_options(nodes, api_only), "complete": complete}
    cluster.state.mkdir(parents=True, exist_ok=True)
    cluster.state.chmod(0o700)  # it contains the administrator's key
    unfinished = cluster.state / "cluster.json.unfinished"
    unfinished.write_text(json.dumps(record))
    unfinished.rename(cluster.state / "cluster.json")


def _write_configuration(cluster: Cluster, nodes: int) -> None:
    folder = cluster.state / "pki"
    now = datetime.datetime.now(datetime.UTC)
    pki.create(folder, control_plane.certificates(cluster, nodes), now)
    server = control_plane.server_url(cluster)
    for file in ("admin", *control_plane.COMPONENT_USERS):
        (cluster.state / f"{file}.conf").write_text(pki.kubeconfig(folder, file, server))
    for each in (cluster.node(i + 1) for i in range(nodes)):
        (each.state / "kubelet.conf").write_text(pki.kubeconfig(folder, each.name, server))
    policy = yaml.safe_dump(control_plane.audit_policy())
    (cluster.state / "audit-policy.yaml").write_text(policy)
    (cluster.state / "resolv.conf").write_text(dns.resolver(cluster))
    cluster.logs.mkdir(exist_ok=True)


def _wait_for_api_server(cluster: Cluster) -> None:
    probe = ["kubectl", "get", "--raw=/readyz"]
    waiting.until(
        lambda: cluster.exec(probe, capture_output=True).returncode == 0,
        cluster=cluster,
        daemon="kube-apiserver",
        what="The API server does not become ready",
        seconds=120,
    )


def _wait_for_controllers(cluster: Cluster) -> None:
    """Wait until a controller has created the ServiceAccount of the default namespace."""
    probe = ["kubectl", "get", "serviceaccount", "default"]
    waiting.until(
        lambda: cluster.exec(probe, capture_output=True).returncode == 0,
        cluster=cluster,
        daemon="kube-controller-manager",
        what="The controllers do not work",
        seconds=120,
    )


def _wait_for_nodes(cluster: Cluster, names: list[str]) -> None:
    waiting.until(
        lambda: (
            schedulable(json.loads(cluster.kubectl("get", "nodes", "--output=json"))) >= {*names}
        ),
        cluster=cluster,
        daemon=f"{names[-1]}-kubelet",
        what="The nodes do not become ready",
        seconds=120,
    )


def _wait_for_dns(cluster: Cluster) -> None:
    probe = ["getent", "hosts", "kubernetes.default.svc.cluster.local"]
    waiting.until(
        lambda: cluster.exec(probe, capture_output=True).returncode == 0,
        cluster=cluster,
        daemon="coredns",
        what="The cluster's DNS does not answer",
        seconds=60,
    )


def schedulable(nodes: dict[str, Any]) -> set[str]:
    """Return the names of the nodes that are ready and have no taint."""
    return {
        each["metadata"]["name"]
        for each in nodes["items"]
        if not each["spec"].get("taints")
        for condition in each["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    }


def down(cluster: Cluster) -> None:
    """Remove the whole cluster, whatever its state. Its images stay in the cache."""
    with cluster.locked(), step(f"Removing cluster {cluster.name}"):
        _remove(cluster)


def _remove(cluster: Cluster) -> None:
    _end_politely(cluster)
    cgroups.kill(cluster.cgroup)
    _kill_visitors(cluster)
    cgroups.remove(cluster.cgroup)
    _remove_folder(cluster.state)


def _end_politely(cluster: Cluster) -> None:
    """Stop the daemons that need a clean end, such as containerd, which must close its store."""

    def asked() -> list[int]:
        daemons = cluster.daemons().items()
        return [pid for name, pid in daemons if pid and name not in control_plane.PROGRAMS]

    for pid in asked():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _POLITE_SECONDS
    while asked() and time.monotonic() < deadline:
        time.sleep(0.05)


def _kill_visitors(cluster: Cluster) -> None:
    """Kill the other processes in the namespaces, such as a command that `exec` started."""
    for pid in network.processes(cluster):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def clean(*, cache: bool) -> None:
    """Remove every cluster and, on request, everything that the project's tools keep in the
    cache.
    """
    for each in all_clusters():
        down(each)
    _remove_folder(paths.STATE_ROOT)
    if cache:
        with step(f"Removing the project's files in {paths.cache_dir()}"):
            # Only known names are removed, because the folder LLMSERVICE_CACHE may contain other
            # files too.
            for name in paths.CACHED:
                _remove_folder(paths.cache_dir() / name)
            with suppress(OSError):
                paths.cache_dir().rmdir()


def _remove_folder(folder: Path) -> None:
    # Mounts are removed first, because a mount may contain the user's files.
    mounts.release(folder)
    if folder.exists():
        shutil.rmtree(folder)
