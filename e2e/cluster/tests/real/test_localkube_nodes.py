"""Tests two real nodes: restricted pods, network, DNS, logs, GPUs, and removal."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localkube import archive
from localkube.cluster import Cluster, Node
from localkube.node import import_archive
from localkube_support.cluster import apply, links, localkube, objects, remains, succeed
from shared_support.waiting import eventually

NAME = "test-nodes"
NAMESPACE = "restricted"
IMAGE = "localhost/localkube/echo:test"
ECHO = Path(__file__).parent.parent / "echo"


@pytest.fixture(scope="module")
def echo_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("echo") / "echo"
    environment = os.environ | {"CGO_ENABLED": "0"}
    build = ["go", "build", "-buildvcs=false", "-o", str(program), "."]
    subprocess.run(build, cwd=ECHO, env=environment, check=True)
    return program


@pytest.fixture(scope="module")
def echo_archive(echo_program: Path) -> Path:
    file = echo_program.with_suffix(".tar")
    file.write_bytes(archive.single_program(echo_program, IMAGE))
    return file


@pytest.fixture(scope="module")
def cluster(echo_archive: Path) -> Iterator[Cluster]:
    """Cluster of two nodes. Each has a restricted echo pod, and one Service selects both pods."""
    succeed(NAME, "down")
    succeed(NAME, "up", "--nodes=2")
    running = Cluster(NAME)
    for node in running.nodes():
        import_archive(node, echo_archive)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply(running, namespace(labels), service(), *(pod(f"on-{n}", node=n) for n in NODES))
    eventually(lambda: all(is_ready(running, f"on-{each}") for each in NODES), 60)
    yield running
    succeed(NAME, "down")


NODES = ("node1", "node2")


def namespace(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": labels},
    }


def service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "echo", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "echo"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def pod(
    name: str, *, node: str | None = None, image: str = IMAGE, app: str = "echo", gpus: int = 0
) -> dict[str, Any]:
    container = {
        "name": "echo",
        "image": image,
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 12345,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 1,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"app": app}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def read_pod(cluster: Cluster, name: str) -> Any:
    return objects(cluster, "pod", name, f"--namespace={NAMESPACE}")


def conditions(cluster: Cluster, name: str) -> dict[str, str]:
    reported = read_pod(cluster, name)["status"].get("conditions", [])
    return {each["type"]: each["status"] for each in reported}


def is_ready(cluster: Cluster, name: str) -> bool:
    assert conditions(cluster, name).get("Ready") == "True", read_pod(cluster, name)["status"]
    return True


def address(cluster: Cluster, name: str) -> str:
    return str(read_pod(cluster, name)["status"]["podIP"])


def fetch(url: str) -> str:
    """Fetch a page with Python in the cluster's network; return its text."""
    program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    return succeed(NAME, "exec", "--", "python3", "-c", program, url).strip()


def logs(cluster: Cluster, name: str) -> str:
    return cluster.kubectl("logs", name, f"--namespace={NAMESPACE}")


def test_a_service_is_reached_by_name_and_answers_from_every_node(cluster: Cluster) -> None:
    url = f"http://echo.{NAMESPACE}.svc"

    eventually(lambda: {fetch(url) for _ in range(4)} == {"on-node1", "on-node2"}, 60)


def test_a_service_is_reached_by_its_cluster_address(cluster: Cluster) -> None:
    spec = objects(cluster, "service", "echo", f"--namespace={NAMESPACE}")["spec"]

    assert fetch(f"http://{spec['clusterIP']}/") in ("on-node1", "on-node2")


@pytest.mark.parametrize("node", NODES)
def test_names_are_resolved_in_a_pod(cluster: Cluster, node: str) -> None:
    pod_url = f"http://{address(cluster, f'on-{node}')}:8080"

    assert fetch(f"{pod_url}/resolve?name=kubernetes.default.svc.cluster.local") == "[10.96.0.1]"
    assert fetch(f"{pod_url}/fetch?url=http://echo.{NAMESPACE}/") in ("on-node1", "on-node2")


@pytest.mark.parametrize(("here", "there"), [NODES, NODES[::-1]])
def test_pods_of_two_nodes_reach_each_other_by_their_true_addresses(
    cluster: Cluster, here: str, there: str
) -> None:
    mine, other = (address(cluster, f"on-{node}") for node in (here, there))

    answer = fetch(f"http://{mine}:8080/fetch?url=http://{other}:8080/")

    assert answer == f"on-{there}"
    assert f"asked by {mine}:" in logs(cluster, f"on-{there}")


@pytest.mark.parametrize("node", NODES)
def test_the_logs_of_a_pod_can_be_read(cluster: Cluster, node: str) -> None:
    assert "listening" in logs(cluster, f"on-{node}")


def test_a_pod_that_is_not_restricted_is_refused(cluster: Cluster) -> None:
    loose = pod("loose")
    del loose["spec"]["securityContext"]

    with pytest.raises(Exception, match="violates PodSecurity"):
        apply(cluster, loose)


def test_an_image_in_the_registry_is_pulled_by_every_node(cluster: Cluster) -> None:
    reference = "localhost:5000/test/echo:1"
    ctr = ["ctr", f"--address={cluster.node(1).containerd_socket}", "--namespace=k8s.io", "images"]
    cluster.exec([*ctr, "tag", "--force", IMAGE, reference], check=True, capture_output=True)
    cluster.exec([*ctr, "push", "--plain-http", reference], check=True, capture_output=True)

    apply(cluster, pod("pulled", node="node2", image=reference, app="pulled"))

    eventually(lambda: is_ready(cluster, "pulled"), 60)


def test_a_pod_that_asks_for_a_gpu_runs_once_the_nodes_say_that_they_have_one(
    cluster: Cluster, echo_program: Path, tmp_path: Path
) -> None:
    apply(cluster, pod("gpu", app="gpu", gpus=1))
    eventually(lambda: conditions(cluster, "gpu").get("PodScheduled") == "False", 60)

    succeed(NAME, "gpus", "1")

    eventually(lambda: is_ready(cluster, "gpu"), 60)
    # The node's status lists its images. Once it lists a new image, the kubelet has written the
    # status again, and the GPUs must still be in it.
    new_image = "localhost/localkube/echo:new"
    file = tmp_path / "new.tar"
    file.write_bytes(archive.single_program(echo_program, new_image))
    import_archive(cluster.node(1), file)
    eventually(lambda: new_image in str(status_of(cluster, "node1")["images"]), 120)
    assert status_of(cluster, "node1")["allocatable"]["nvidia.com/gpu"] == "1"

    succeed(NAME, "gpus", "0")

    assert "nvidia.com/gpu" not in status_of(cluster, "node1")["allocatable"]
    assert "nvidia.com/gpu" not in status_of(cluster, "node1")["capacity"]


def status_of(cluster: Cluster, node: str) -> Any:
    return objects(cluster, "node", node)["status"]


def test_a_crash_with_running_pods_goes_whole_and_the_images_stay(cluster: Cluster) -> None:
    links_before = links()
    assert set(remains(NAME)) == {"state", "processes", "mounts", "control groups"}
    for daemon in ("node1-containerd", "node2-kubelet", "etcd"):
        process = cluster.daemons()[daemon]
        assert process is not None
        os.kill(process, signal.SIGKILL)

    succeed(NAME, "down")

    assert remains(NAME) == {}
    assert links() == links_before
    # The images are kept and the earlier pods are gone, so a new pod starts at once.
    succeed(NAME, "up")
    assert containers(cluster.node(1)) == []
    apply(cluster, namespace({}), pod("again"))
    eventually(lambda: is_ready(cluster, "again"), 60)
    assert localkube(NAME, "status").returncode == 0


def containers(node: Node) -> list[str]:
    ctr = ["ctr", f"--address={node.containerd_socket}", "--namespace=k8s.io"]
    listed = subprocess.run(
        [*ctr, "containers", "list", "--quiet"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()
