"""Tests that real API-only clusters start, run at the same time, and leave nothing behind."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from localkube.cluster import Cluster
from localkube_support.cluster import LOCALKUBE, links, localkube, objects, remains, succeed
from shared_support.waiting import eventually

NAME = "test-api"
OTHER = "test-api-2"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    succeed(NAME, "down")
    succeed(NAME, "up", "--api-only")
    yield Cluster(NAME)
    succeed(NAME, "down")


@pytest.fixture
def other() -> Iterator[str]:
    """Name of a cluster that does not exist before the test, and is removed after it."""
    succeed(OTHER, "down")
    yield OTHER
    succeed(OTHER, "down")


def test_an_api_only_cluster_answers_and_has_no_node(cluster: Cluster) -> None:
    assert succeed(NAME, "kubectl", "get", "--raw=/readyz").strip() == "ok"
    assert objects(cluster, "nodes")["items"] == []
    assert cluster.nodes() == []


def test_exec_has_the_cluster_in_its_environment_and_returns_the_status(cluster: Cluster) -> None:
    printed = succeed(
        NAME, "exec", "--", "sh", "-c", "echo $LOCALKUBE_NAME; kubectl get ns -o name"
    )

    assert printed.splitlines()[0] == NAME
    assert "namespace/kube-system" in printed
    assert localkube(NAME, "exec", "--", "sh", "-c", "exit 7").returncode == 7


def test_helm_reaches_the_cluster(cluster: Cluster) -> None:
    assert json.loads(succeed(NAME, "helm", "list", "--output=json")) == []


def test_up_leaves_a_running_cluster_alone_and_refuses_other_options(cluster: Cluster) -> None:
    before = cluster.daemons()

    again = localkube(NAME, "up", "--api-only")
    different = localkube(NAME, "up")

    assert "running already" in again.stderr
    assert different.returncode == 1
    assert f"localkube --name {NAME} down" in different.stderr
    assert cluster.daemons() == before


def test_the_audit_log_tells_who_wrote_what_and_when(cluster: Cluster) -> None:
    cluster.kubectl("create", "configmap", "early")
    early = json.loads(succeed(NAME, "audit", "--writes", "--user=admin").splitlines()[-1])
    cluster.kubectl("create", "configmap", "late")
    cluster.kubectl("get", "configmap", "late")
    since = early["stageTimestamp"]

    log = succeed(NAME, "audit", "--user=admin", f"--since={since}", "--writes").splitlines()

    (late,) = [json.loads(line) for line in log]
    assert early["objectRef"]["name"] == "early"
    assert (late["verb"], late["objectRef"]["resource"]) == ("create", "configmaps")
    assert late["objectRef"]["name"] == "late"
    assert late["user"]["username"] == "admin"
    reads = [json.loads(each) for each in succeed(NAME, "audit", "--user=admin").splitlines()]
    assert any(each["verb"] == "get" and each["objectRef"]["name"] == "late" for each in reads)


def test_gpus_are_refused_where_there_is_no_node(cluster: Cluster) -> None:
    refused = localkube(NAME, "gpus", "1")

    assert refused.returncode == 1
    assert "without --api-only" in refused.stderr


def test_two_clusters_run_at_once_and_do_not_meet(cluster: Cluster, other: str) -> None:
    succeed(other, "up", "--api-only")
    succeed(other, "kubectl", "create", "namespace", "only-in-the-second")

    assert "only-in-the-second" not in cluster.kubectl("get", "namespaces")
    succeed(other, "down")
    assert cluster.kubectl("get", "--raw=/readyz") == "ok"


def test_down_leaves_nothing_on_the_machine(other: str) -> None:
    links_before = links()
    succeed(other, "up", "--api-only")
    assert set(remains(other)) == {"state", "processes", "mounts", "control groups"}

    succeed(other, "down")

    assert remains(other) == {}
    assert links() == links_before


def test_a_crashed_cluster_is_reported_and_goes_whole(other: str) -> None:
    succeed(other, "up", "--api-only")
    process = Cluster(other).daemons()["kube-apiserver"]
    assert process is not None
    os.kill(process, signal.SIGKILL)

    eventually(
        lambda: "kube-apiserver             has ended" in localkube(other, "status").stdout, 60
    )
    assert localkube(other, "status").returncode == 1
    succeed(other, "down")

    assert remains(other) == {}


def test_what_a_killed_up_has_begun_goes_whole(other: str) -> None:
    driver = _killed_up(other)
    assert driver == -signal.SIGKILL
    assert "processes" in remains(other)

    succeed(other, "down")

    assert remains(other) == {}


def test_up_begins_anew_after_a_killed_up(other: str) -> None:
    _killed_up(other)

    succeed(other, "up", "--api-only")

    assert succeed(other, "kubectl", "get", "--raw=/readyz").strip() == "ok"


def test_a_command_that_is_left_in_exec_ends_with_the_cluster(other: str) -> None:
    succeed(other, "up", "--api-only")
    visitor = subprocess.Popen([LOCALKUBE, "--name", other, "exec", "--", "sleep", "600"])
    netns = os.stat(Cluster(other).netns).st_ino
    eventually(lambda: os.stat(f"/proc/{visitor.pid}/ns/net").st_ino == netns, 60)

    succeed(other, "down")

    assert visitor.wait(timeout=10) == -signal.SIGKILL


def _killed_up(name: str) -> int:
    """Kill `up` while it waits for the API server; return its exit status."""
    with subprocess.Popen(
        [LOCALKUBE, "--name", name, "up", "--api-only"], stderr=subprocess.DEVNULL
    ) as driver:
        pid_file = Cluster(name).pids / "kube-apiserver.pid"
        eventually(pid_file.exists, 60)
        driver.kill()
    return driver.returncode
