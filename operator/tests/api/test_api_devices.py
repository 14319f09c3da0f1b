"""Tests the devices of a replica with the API server, its controllers and a real scheduler.

No device plugin or driver runs. The test reports a node's devices in their place.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.kinds import LLMSERVICES, PODS
from localkube import binaries
from operator_support.processes import Api, OperatorProcess, condition, make_service
from shared_support.waiting import eventually

SCHEDULER = "of-devices"
"""Name of this scheduler, which differs from the default so that it ignores other tests' pods."""
NODE = "with-devices"
DRA = "/apis/resource.k8s.io/v1"
CLASS = "gpu.example.com"
EVERY_TAINT = [{"operator": "Exists"}]
"""Toleration of every taint, because no kubelet reports that the node is ready."""


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[None]:
    configuration = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": os.environ["KUBECONFIG"]},
        "profiles": [{"schedulerName": SCHEDULER}],
    }
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps(configuration))
    with (tmp_path / "scheduler.log").open("w") as log:
        process = subprocess.Popen(
            [binaries.program("kube-scheduler"), f"--config={file}", "--secure-port=0"],
            stdout=log,
            stderr=log,
        )
    yield
    process.terminate()
    process.wait(30)


@pytest.fixture
def node(api: Api) -> Iterator[None]:
    """A node with ample CPU and memory but no device, and a device class that no node has."""
    api.request("POST", "/api/v1/nodes", {"metadata": {"name": NODE}})
    offer(api, {"cpu": "64", "memory": "512Gi", "pods": "99"})
    selector = [{"cel": {"expression": f"device.driver == '{CLASS}'"}}]
    api.request(
        "POST",
        f"{DRA}/deviceclasses",
        {"metadata": {"name": CLASS}, "spec": {"selectors": selector}},
    )
    yield
    api.request("DELETE", f"{DRA}/resourceslices", fieldSelector=f"spec.nodeName={NODE}")
    api.request("DELETE", f"{DRA}/deviceclasses/{CLASS}")
    api.request("DELETE", f"/api/v1/nodes/{NODE}")


def offer(api: Api, resources: dict[str, str]) -> None:
    """Report the node's resources in place of a kubelet."""
    status = {"status": {"capacity": resources, "allocatable": resources}}
    path = f"/api/v1/nodes/{NODE}/status"
    api.request("PATCH", path, status, "application/merge-patch+json")


def publish(api: Api, devices: int) -> None:
    """Report the node's devices in place of a driver."""
    spec = {
        "driver": CLASS,
        "nodeName": NODE,
        "pool": {"name": NODE, "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": f"gpu-{number}"} for number in range(devices)],
    }
    api.request("POST", f"{DRA}/resourceslices", {"metadata": {"name": NODE}, "spec": spec})


def make_template(api: Api, namespace: str, name: str, count: int) -> None:
    requests = [{"name": "it", "exactly": {"deviceClassName": CLASS, "count": count}}]
    api.request(
        "POST",
        f"{DRA}/namespaces/{namespace}/resourceclaimtemplates",
        {"metadata": {"name": name}, "spec": {"spec": {"devices": {"requests": requests}}}},
    )


@pytest.mark.causes("WaitingForDevice")
def test_a_replica_gets_its_extended_resources_and_its_gpus_from_claims(
    api: Api, operator: OperatorProcess, served: str, name: str, scheduler: None, node: None
) -> None:
    make_template(api, served, f"{name}-gpus", 2)
    service = make_service(
        name,
        served,
        accelerator={"count": 2, "resourceClaimTemplateName": f"{name}-gpus"},
        resources={"extended": {"rdma/hca": 1, "hugepages-2Mi": "4Mi"}},
        template={"schedulerName": SCHEDULER, "tolerations": EVERY_TAINT},
    )
    api.create(LLMSERVICES, service)

    def waits(reason: str, devices: str) -> bool:
        ready = condition(api.get(LLMSERVICES, served, name), "Ready")
        start = f"A replica needs {devices} on one node"
        return ready["reason"] == reason and start in ready["message"]

    def pod() -> dict[str, Any]:
        selector = f"llmservice.dev/name={name}"
        (found,) = api.list_all(PODS, served, labelSelector=selector)
        return found

    eventually(lambda: waits("WaitingForDevice", "4Mi hugepages-2Mi and 1 rdma/hca"))

    offer(api, {"rdma/hca": "1", "hugepages-2Mi": "8Mi"})
    eventually(lambda: waits("WaitingForGPU", "the devices of its resource claims"))

    publish(api, 2)
    eventually(lambda: pod()["spec"].get("nodeName") == NODE)
    (claim,) = pod()["status"]["resourceClaimStatuses"]
    allocated = api.request(
        "GET", f"{DRA}/namespaces/{served}/resourceclaims/{claim['resourceClaimName']}"
    )["status"]["allocation"]["devices"]["results"]
    assert sorted(each["device"] for each in allocated) == ["gpu-0", "gpu-1"]
