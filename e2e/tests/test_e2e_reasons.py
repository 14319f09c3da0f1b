"""Tests the reasons of services that are not Ready. Each reason has its real cause.

All services are in one namespace. The tests cover the reasons that a node, the hub or a container
causes. Tests with the mark `causes` in other tiers cover the other reasons.
"""

import copy
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest

from e2e_support import PATIENCE, Cluster, Object, conditions, until_reason, wait_ready
from llmservice_operator.api.reason_facts import in_commands
from llmservice_operator.api.reasons import Reason
from pod_processes import SERVER, process_of
from shared_support.waiting import eventually
from stage import TINY_MODEL, Images, cpu_service

pytestmark = pytest.mark.local

SLOW_MODEL = "llmservice-test/slow-smollm2"
HEALTHY, SLOW, IMPATIENT, KILLED = "healthy", "slow", "impatient", "killed"
NOWHERE = {"nodeSelector": {"llmservice-test/nowhere": "true"}}

CAUSES: Mapping[str, tuple[dict[str, Any], str, str]] = {
    # Name of the service: (faulty part of its spec, reason, part of the message).
    # The first three use a CPU at every restart, so they are deleted first.
    "wrong-argument": (
        {"engine": {"extraArgs": ["--kv-cache-memory-bytes=lots"]}},
        "InvalidEngineArgument",
        "--kv-cache-memory-bytes",
    ),
    "unknown-error": (
        {"engine": {"env": [{"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": "lots"}]}},
        "LoadFailed",
        Reason.LOAD_FAILED.hint,
    ),
    "no-memory": (
        {"resources": {"requests": {"cpu": "20m"}, "limits": {"memory": "64Mi"}}},
        "OutOfMemory",
        Reason.OUT_OF_MEMORY.hint,
    ),
    "no-image": (
        {"engine": {"image": "registry.invalid/server:1"}},
        "ImagePullError",
        Reason.IMAGE_PULL_ERROR.hint,
    ),
    "no-secret": (
        {"model": {"uri": f"hf://{TINY_MODEL}", "credentialsSecretRef": {"name": "absent"}}},
        "SecretMissing",
        'secret "absent" not found',
    ),
    "no-config-map": (
        {"engine": {"chatTemplate": {"configMapKeyRef": {"name": "absent", "key": "template"}}}},
        "ConfigMapMissing",
        'configmap "absent" not found',
    ),
    "no-claim": (
        {"model": {"uri": "pvc://absent/model"}},
        "VolumePending",
        'persistentvolumeclaim "absent" not found',
    ),
    "no-volume": (
        {"model": {"uri": "pvc://unbound/model"}},
        "VolumePending",
        "unbound immediate PersistentVolumeClaims",
    ),
    "no-node": ({"template": NOWHERE}, "Unschedulable", "0/1 nodes are available"),
}


def small(name: str, uri: str = f"hf://{TINY_MODEL}", **spec: Any) -> Object:
    """Return a service that requests so few resources that many services run at the same time."""
    service = cpu_service(name, uri)
    service["spec"]["resources"] = {"requests": {"cpu": "20m", "memory": "64Mi"}}
    service["spec"].update(spec)
    return service


def ready(cluster: Cluster, name: str, namespace: str) -> Object:
    return conditions(cluster.read("llm", name, namespace)).get("Ready", {})


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster, namespace: str, images: Images) -> None:
    """Create the services together: most can fail while others still wait for a CPU."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "unbound"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none-such",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    made = [small(name, **change) for name, (change, _, _) in CAUSES.items()]
    made += [
        small("no-server", engine={"image": images.operator}),
        small(SLOW, f"hf://{SLOW_MODEL}"),
        small(IMPATIENT, template=NOWHERE),
        small(HEALTHY),
    ]
    cluster.apply({"apiVersion": "v1", "kind": "List", "items": [claim, *made]}, namespace)


@pytest.mark.causes("Unschedulable", "VolumePending", "ImagePullError", "SecretMissing")
@pytest.mark.causes("ConfigMapMissing", "OutOfMemory", "InvalidEngineArgument", "LoadFailed")
@pytest.mark.parametrize("name", CAUSES)
def test_the_status_says_what_is_wrong_and_what_to_change(
    cluster: Cluster, namespace: str, name: str
) -> None:
    _, reason, text = CAUSES[name]
    assert in_commands(name, text) in until_reason(cluster, name, namespace, reason)
    available = conditions(cluster.read("llm", name, namespace))["Available"]
    assert (available["status"], available["reason"]) == ("False", "NoReplicaReady")
    # The service is no longer needed, and the others wait for its CPU.
    cluster.kubectl("delete", "llm", name, "-n", namespace, "--wait=false")


@pytest.mark.causes("ContainerStartError")
def test_an_image_without_our_server_is_told_as_such(cluster: Cluster, namespace: str) -> None:
    message = until_reason(cluster, "no-server", namespace, "ContainerStartError")
    assert message.endswith(Reason.CONTAINER_START_ERROR.hint)
    cluster.kubectl("delete", "llm", "no-server", "-n", namespace, "--wait=false")


@pytest.mark.causes("DownloadingModel")
def test_a_download_is_told_in_bytes(cluster: Cluster, namespace: str) -> None:
    message = until_reason(cluster, SLOW, namespace, "DownloadingModel")
    assert " MB of 269." in message
    cluster.kubectl("delete", "llm", SLOW, "-n", namespace, "--wait=false")


@pytest.mark.causes("StartupTimeout")
def test_a_start_that_takes_too_long_is_told_as_such(cluster: Cluster, namespace: str) -> None:
    """Add a pod with a short startup deadline. A service allows no deadline below a minute."""
    deployment = cluster.read("deployment", IMPATIENT, namespace)
    assert deployment is not None
    (waiting,) = cluster.list("pod", namespace, f"llmservice.dev/name={IMPATIENT}")
    pod = copy.deepcopy(deployment["spec"]["template"])
    del pod["spec"]["nodeSelector"]
    pod["spec"]["containers"][0]["startupProbe"] |= {
        "periodSeconds": 2,
        "failureThreshold": 3,
        # The container may get SIGTERM before it can handle the signal. It then runs until it is
        # killed.
        "terminationGracePeriodSeconds": 5,
    }
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    pod["metadata"]["name"] = f"{IMPATIENT}-too"
    pod["metadata"]["labels"] |= waiting["metadata"]["labels"]
    # The pod belongs to the present revision. Without an owner, the ReplicaSet would adopt the pod
    # and then delete one of its two pods.
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": IMPATIENT, "controller": True}
    pod["metadata"]["ownerReferences"] = [{**owner, "uid": deployment["metadata"]["uid"]}]
    cluster.apply(pod, namespace)

    message = until_reason(cluster, IMPATIENT, namespace, "StartupTimeout")
    assert "The model was not" in message
    cluster.kubectl("delete", "pod", f"{IMPATIENT}-too", "-n", namespace, "--wait=false")
    cluster.kubectl("delete", "llm", IMPATIENT, "-n", namespace, "--wait=false")


def test_a_start_that_goes_well_tells_of_no_trouble(cluster: Cluster, namespace: str) -> None:
    wait_ready(cluster, HEALTHY, namespace)

    def events() -> list[Object]:
        # Kubernetes has Events of its own about objects with the same name, such as the Service.
        about = {"kind": "LLMService", "name": HEALTHY}
        found = cluster.list("events", namespace)
        return [it for it in found if about.items() <= it["involvedObject"].items()]

    told = {"RolloutInProgress", "LoadingModel", "Serving"}
    eventually(lambda: told <= {it["reason"] for it in events()}, within=10)
    assert [it["reason"] for it in events() if it["type"] == "Warning"] == []
    found = conditions(cluster.read("llm", HEALTHY, namespace))
    assert {kind: (it["status"], it["reason"]) for kind, it in found.items()} | {
        "Ready": ("True", "Serving"),
        "Progressing": ("False", "RolloutComplete"),
        "Available": ("True", "Serving"),
        "ModelReady": ("True", "ModelLoaded"),
    } == {kind: (it["status"], it["reason"]) for kind, it in found.items()}


@pytest.mark.causes("ServerNotReady")
def test_a_server_that_stands_still_is_not_ready_and_then_serves_on(
    cluster: Cluster, namespace: str
) -> None:
    wait_ready(cluster, HEALTHY, namespace)
    (pod,) = cluster.list("pods", namespace, f"llmservice.dev/name={HEALTHY}")
    server = process_of(pod, SERVER)
    os.kill(server, signal.SIGSTOP)
    try:
        until_reason(cluster, HEALTHY, namespace, "ServerNotReady")
    finally:
        os.kill(server, signal.SIGCONT)
    wait_ready(cluster, HEALTHY, namespace)


@pytest.mark.causes("CrashLoop")
def test_a_server_that_is_killed_again_and_again_is_told_as_such(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(small(KILLED), namespace)

    def is_told() -> str:
        found = ready(cluster, KILLED, namespace)
        if found.get("reason") != "CrashLoop":
            (pod,) = cluster.list("pods", namespace, f"llmservice.dev/name={KILLED}")
            os.kill(process_of(pod, SERVER), signal.SIGKILL)
        assert found.get("reason") == "CrashLoop", found
        return str(found["message"])

    message = eventually(is_told, within=PATIENCE, every=1)
    assert "ended with exit code 137" in message
    assert message.endswith(Reason.CRASH_LOOP.advice(KILLED))
    cluster.kubectl("delete", "llm", KILLED, "-n", namespace, "--wait=false")
