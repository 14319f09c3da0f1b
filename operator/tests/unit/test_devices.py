"""Tests extended resources, huge pages and resource claims of a replica."""

import json
from typing import Any

import pytest

from llmservice_operator.api.accelerator_class import parse_classes
from llmservice_operator.api.reasons import Reason
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import observe_service, resolve_pin
from operator_support.services import SETTINGS, a_deployment, a_pod, a_service, one

GPUS = {"count": 2, "resourceClaimTemplateName": "two-gpus"}
NIC = {"name": "nic", "resourceClaimTemplateName": "fast-nic"}
SHARED = {"name": "switch", "resourceClaimName": "the-switch"}


def pod(spec: dict[str, Any], **classes: Any) -> dict[str, Any]:
    parsed = parse_classes(json.dumps(classes), "CLASSES")
    settings = OperatorSettings(images=SETTINGS.images, accelerator_classes=parsed)
    service = a_service(spec)
    built = build_all(Context.of(service, settings, resolve_pin(service, None, settings)))
    found: dict[str, Any] = one("Deployment", built)["spec"]["template"]["spec"]
    return found


def resources(spec: dict[str, Any], **classes: Any) -> dict[str, Any]:
    (container,) = pod(spec, **classes)["containers"]
    found: dict[str, Any] = container["resources"]
    return found


def test_extended_resources_are_requested_and_limited_in_addition_to_the_gpus() -> None:
    found = resources({"resources": {"extended": {"rdma/hca": 1, "hugepages-1Gi": "2Gi"}}})
    devices = {"rdma/hca": "1", "hugepages-1Gi": "2Gi", "nvidia.com/gpu": "1"}
    assert found["limits"] == devices
    assert found["requests"].items() >= devices.items()


def test_a_model_is_split_over_the_gpus_of_a_claim_which_are_not_requested_by_name() -> None:
    found = pod({"accelerator": GPUS})
    (container,) = found["containers"]
    assert found["resourceClaims"] == [
        {"name": "gpus", "resourceClaimTemplateName": "two-gpus"},
    ]
    assert container["resources"]["claims"] == [{"name": "gpus"}]
    assert container["resources"]["requests"] == {"cpu": "2", "memory": "8Gi"}
    assert "limits" not in container["resources"]
    assert "--tensor-parallel-size=2" in container["args"]


def test_every_claim_of_the_pod_is_one_of_the_server() -> None:
    found = pod({"accelerator": GPUS, "resources": {"claims": [NIC, SHARED]}})
    assert found["resourceClaims"][1:] == [NIC, SHARED]
    names = [{"name": each["name"]} for each in found["resourceClaims"]]
    assert found["containers"][0]["resources"]["claims"] == names
    assert "resourceClaims" not in pod({})


def test_a_class_brings_devices_and_the_spec_overrides_them() -> None:
    fast = {
        "resourceName": "nvidia.com/mig-3g.40gb",
        "resources": {"extended": {"rdma/hca": 1, "rdma/other": 1}, "claims": [NIC, SHARED]},
    }
    own = {**NIC, "resourceClaimTemplateName": "own-nic"}
    spec = {
        "accelerator": {"class": "fast", "resourceClaimTemplateName": "a-gpu"},
        "resources": {"extended": {"rdma/hca": 4}, "claims": [own]},
    }
    assert resources(spec, fast=fast)["limits"] == {"rdma/hca": "4", "rdma/other": "1"}
    assert pod(spec, fast=fast)["resourceClaims"][1:] == [own, SHARED]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"extended": {f"rdma/{n}": 1 for n in range(8)}}, "at most 8 items"),
        ({"requests": {"memory": "2Gi"}}, "memory"),
    ],
)
def test_resources_that_do_not_fit_those_of_the_class_are_refused(
    own: dict[str, Any], said: str
) -> None:
    fast = {"resources": {"extended": {"rdma/hca": 1}, "limits": {"memory": "1Gi"}}}
    with pytest.raises(InvalidSpec, match=said) as refused:
        pod({"accelerator": {"class": "fast"}, "resources": own}, fast=fast)
    assert str(refused.value).startswith("spec.resources: together with those of the class fast: ")


NO_CLAIMS = "0/1 nodes are available: 1 cannot allocate all claims."


@pytest.mark.parametrize(
    ("spec", "said", "reason", "devices"),
    [
        (
            {"resources": {"extended": {"rdma/hca": 2}}},
            "0/1 nodes are available: 1 Insufficient rdma/hca.",
            Reason.WAITING_FOR_DEVICE,
            "2 rdma/hca",
        ),
        (
            {"accelerator": {"type": "cpu"}, "resources": {"extended": {"rdma/hca": 1}}},
            "0/1 nodes are available: 1 Insufficient rdma/hca.",
            Reason.WAITING_FOR_DEVICE,
            "1 rdma/hca",
        ),
        (
            {"resources": {"extended": {"hugepages-2Mi": "512Mi", "rdma/hca": 1}}},
            "0/2 nodes are available: 1 Insufficient hugepages-2Mi, 2 Insufficient rdma/hca.",
            Reason.WAITING_FOR_DEVICE,
            "512Mi hugepages-2Mi and 1 rdma/hca",
        ),
        (
            {"resources": {"claims": [NIC]}},
            NO_CLAIMS,
            Reason.WAITING_FOR_DEVICE,
            "the devices of its resource claims",
        ),
        (
            {"accelerator": GPUS},
            NO_CLAIMS,
            Reason.WAITING_FOR_GPU,
            "the devices of its resource claims",
        ),
    ],
)
def test_the_status_names_the_devices_that_no_node_has_free(
    spec: dict[str, Any], said: str, reason: Reason, devices: str
) -> None:
    waiting = a_pod(unscheduled=said)
    waiting["status"]["conditions"][-1]["lastTransitionTime"] = "2026-01-02T03:00:00Z"
    waiting["spec"] = {**waiting.get("spec", {}), "containers": pod(spec)["containers"]}
    seen = observe_service(a_service(spec), a_deployment(), [waiting])
    assert seen.problem is not None
    assert seen.problem.reason is reason
    start = f"A replica needs {devices} on one node, and no node has them free: {said}"
    assert seen.problem.message.startswith(start)
    assert seen.waits_for_accelerator_since is not None
