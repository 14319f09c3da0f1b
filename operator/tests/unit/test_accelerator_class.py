"""Tests spec.accelerator.class: an administrator's profile, which the spec itself overrides."""

import json
from decimal import Decimal
from typing import Any

import pytest

from llmservice_operator.api.accelerator_class import parse_classes
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired.accelerator_class import gpu_price
from llmservice_operator.errors import InvalidSettings, InvalidSpec
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import observe_service, resolve_pin
from operator_support.services import SETTINGS, a_pod, a_service

PROFILE = {
    "nodeSelector": {"gpu": "h100", "pool": "llm"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "resourceName": "nvidia.com/mig-3g.40gb",
    "gpu": "H100",
    "resources": {"requests": {"cpu": 4, "memory": "32Gi"}, "limits": {"memory": "64Gi"}},
}


def settings(**classes: Any) -> OperatorSettings:
    parsed = parse_classes(json.dumps(classes), "CLASSES")
    return OperatorSettings(images=SETTINGS.images, accelerator_classes=parsed)


def pod_spec(accelerator: dict[str, Any], **spec: Any) -> dict[str, Any]:
    service = a_service({"accelerator": accelerator, **spec})
    pin = resolve_pin(service, None, SETTINGS)
    objects = build_all(Context.of(service, settings(fast=PROFILE), pin))
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def test_a_class_brings_nodes_tolerations_resource_name_and_resources() -> None:
    pod = pod_spec({"class": "fast", "count": 2})
    assert pod["nodeSelector"] == PROFILE["nodeSelector"]
    assert pod["tolerations"] == [
        *PROFILE["tolerations"],
        {"key": "nvidia.com/mig-3g.40gb", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi", "nvidia.com/mig-3g.40gb": "2"},
        "limits": {"memory": "64Gi", "nvidia.com/mig-3g.40gb": "2"},
    }


@pytest.mark.parametrize(
    ("accelerator", "price"),
    [
        ({"class": "priced"}, Decimal("2.5")),
        ({"class": "fast"}, None),
        ({"class": "H100"}, None),
        ({}, None),
    ],
)
def test_a_gpu_costs_what_its_class_says(
    accelerator: dict[str, Any], price: Decimal | None
) -> None:
    classes = settings(fast=PROFILE, priced={"pricePerHour": 2.5}).accelerator_classes
    assert gpu_price(a_service({"accelerator": accelerator}), classes) == price


def test_settings_of_the_spec_override_the_class() -> None:
    own = {"key": "team", "operator": "Exists"}
    pod = pod_spec(
        {"class": "fast", "resourceName": "nvidia.com/gpu"},
        template={"nodeSelector": {"pool": "mine"}, "tolerations": [own, *PROFILE["tolerations"]]},
        resources={"requests": {"memory": "40Gi"}, "limits": {"cpu": 8}},
    )
    assert pod["nodeSelector"] == {"gpu": "h100", "pool": "mine"}
    assert pod["tolerations"] == [own, *PROFILE["tolerations"]]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "40Gi", "nvidia.com/gpu": "1"},
        "limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"},
    }


def test_a_gpu_that_is_known_needs_no_class() -> None:
    assert pod_spec({"class": "L40S"}) == pod_spec({})


@pytest.mark.parametrize(
    ("classes", "known"), [({}, ""), ({"b": {}, "a": PROFILE}, "choose from a, b, ")]
)
def test_an_unknown_class_is_refused_with_the_names_of_the_known_ones(
    classes: dict[str, Any], known: str
) -> None:
    service = a_service({"accelerator": {"class": "abacus"}})
    with pytest.raises(InvalidSpec) as refused:
        build_all(Context.of(service, settings(**classes), resolve_pin(service, None, SETTINGS)))
    assert str(refused.value) == (
        "spec.accelerator.class: abacus is neither an accelerator class of this operator nor a "
        f"known GPU: {known}name a GPU such as H100, or add the class to the chart value "
        "acceleratorClasses"
    )


TOO_MANY = (
    "makes a replica of {gpus} GPUs, and a replica runs on one node, which has at most {most}: use "
    "at most {most}, with a smaller or quantized model if they are too few, or raise the chart "
    "value {value} if your nodes have more"
)
EIGHT_BY_TWO = {"parallelism": {"tensor": 8, "pipeline": 2}}


def refusal(spec: dict[str, Any], **classes: Any) -> str | None:
    """Build the objects. Return the message of a refusal, or None if the build succeeds."""
    service = a_service(spec)
    try:
        build_all(Context.of(service, settings(**classes), resolve_pin(service, None, SETTINGS)))
    except InvalidSpec as refused:
        return str(refused)
    return None


@pytest.mark.parametrize(
    ("spec", "classes", "said"),
    [
        (
            {"engine": EIGHT_BY_TWO},
            {},
            "spec.engine.parallelism: " + TOO_MANY.format(gpus=16, most=8, value="gpusPerNode"),
        ),
        (
            {"accelerator": {"count": 9}},
            {},
            "spec.accelerator.count: " + TOO_MANY.format(gpus=9, most=8, value="gpusPerNode"),
        ),
        (
            {"accelerator": {"class": "H100"}, "engine": EIGHT_BY_TWO},
            {},
            "spec.engine.parallelism: " + TOO_MANY.format(gpus=16, most=8, value="gpusPerNode"),
        ),
        (
            {"accelerator": {"class": "fast", "count": 5}},
            {"fast": {"gpusPerNode": 4}},
            "spec.accelerator.count: "
            + TOO_MANY.format(gpus=5, most=4, value="acceleratorClasses.fast.gpusPerNode"),
        ),
        ({"accelerator": {"count": 8}}, {}, None),
        ({"accelerator": {"class": "dgx", "count": 16}}, {"dgx": {"gpusPerNode": 16}}, None),
        ({"accelerator": {"class": "fast", "count": 16}}, {"fast": PROFILE}, None),
        ({"accelerator": {"resourceName": "nvidia.com/mig-1g.10gb", "count": 56}}, {}, None),
    ],
)
def test_a_replica_with_more_gpus_than_a_node_is_refused_with_the_number(
    spec: dict[str, Any], classes: dict[str, Any], said: str | None
) -> None:
    assert refusal(spec, **classes) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "CLASSES is not valid JSON"),
        ('{"a b": {}}', "must be an accelerator class, or a GPU"),
        ('{"a": {"gpusPerNode": 65}}', "CLASSES: a.gpusPerNode: "),
        ('{"a": {"nodes": {}}}', "CLASSES: a.nodes: Extra inputs are not permitted"),
        (
            '{"a": {"resourceName": "gpu"}}',
            "CLASSES: a.resourceName: must have the form DOMAIN/NAME",
        ),
    ],
)
def test_a_wrong_class_stops_the_operator_from_starting(text: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        parse_classes(text, "CLASSES")


def test_a_shortage_is_reported_for_the_resource_that_the_class_names() -> None:
    service = a_service({"accelerator": {"class": "fast"}})
    said = "0/1 nodes are available: 1 Insufficient nvidia.com/mig-3g.40gb. preemption: 0/1."
    deployment = {
        "metadata": {"name": "qwen", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1},
    }
    seen = observe_service(service, deployment, [a_pod(unscheduled=said)])
    assert seen.problem is not None
    assert seen.problem.reason == "WaitingForGPU"
    assert "A replica needs 1 nvidia.com/mig-3g.40gb on one node" in seen.problem.message
