"""Tests that spec.template is copied to the pod template, with labels and defaults added."""

from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired import is_up_to_date
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service, as_live, one

EVERYTHING: dict[str, Any] = {
    "nodeSelector": {"nvidia.com/gpu.product": "H100"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {
                        "matchExpressions": [
                            {"key": "zone", "operator": "In", "values": ["a", "b"]},
                            {"key": "memory", "operator": "Gt", "values": ["80000"]},
                        ]
                    }
                ]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 10,
                    "preference": {"matchExpressions": [{"key": "fast", "operator": "Exists"}]},
                }
            ],
        },
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "gateway"}}}
            ]
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {},
                        "matchLabelKeys": ["pod-template-hash"],
                    },
                }
            ]
        },
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {
                "matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]
            },
            "minDomains": 2,
            "nodeAffinityPolicy": "Ignore",
            "nodeTaintsPolicy": "Honor",
        }
    ],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
    "serviceAccountName": "team",
}


OF_GPU_NODES = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def deployment(template: dict[str, Any], **spec: Any) -> Manifest:
    service = a_service({"template": template, **spec})
    manifests = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    return one("Deployment", manifests)


def pod_spec(template: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = deployment(template)["spec"]["template"]["spec"]
    return found


def test_every_field_of_the_template_reaches_the_pods_as_it_was_written() -> None:
    assert EVERYTHING.items() <= pod_spec(EVERYTHING).items()
    assert EVERYTHING.keys() & pod_spec({}).keys() == {"tolerations"}


def test_a_template_that_the_api_server_holds_is_not_written_again() -> None:
    desired = deployment(EVERYTHING)
    assert is_up_to_date(as_live(desired), desired)
    assert not is_up_to_date(as_live(deployment({})), desired)
    assert not is_up_to_date(as_live(desired), deployment({}))


def test_empty_texts_of_a_toleration_are_left_out_as_the_api_server_does() -> None:
    toleration = {"key": "k", "operator": "Exists", "value": ""}
    pod = pod_spec({"tolerations": [toleration]})
    assert pod["tolerations"] == [{"key": "k", "operator": "Exists"}, OF_GPU_NODES]


def test_a_slice_of_a_gpu_tolerates_the_taint_of_whole_ones_too() -> None:
    slices = "nvidia.com/mig-3g.40gb"
    found = deployment({}, accelerator={"resourceName": slices})["spec"]["template"]["spec"]
    assert found["tolerations"] == [{**OF_GPU_NODES, "key": slices}, OF_GPU_NODES]


@pytest.mark.parametrize(
    "own",
    [
        OF_GPU_NODES,
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"operator": "Exists"},
        {"operator": "Exists", "effect": "NoSchedule"},
    ],
    ids=["the same", "every effect", "every taint", "every taint of the effect"],
)
def test_a_spec_that_tolerates_the_taint_of_gpu_nodes_gets_no_second_toleration(
    own: dict[str, str],
) -> None:
    assert pod_spec({"tolerations": [own]})["tolerations"] == [own]


@pytest.mark.parametrize(
    "own",
    [
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "present", "effect": "NoSchedule"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"},
        {"key": "team", "operator": "Exists"},
    ],
    ids=["one value", "another effect", "another taint"],
)
def test_the_taint_of_gpu_nodes_is_tolerated_in_addition_to_the_tolerations_of_the_spec(
    own: dict[str, Any],
) -> None:
    assert pod_spec({"tolerations": [own]})["tolerations"] == [own, OF_GPU_NODES]


def test_the_taint_that_is_tolerated_is_that_of_the_resource_and_none_on_a_cpu() -> None:
    renamed = deployment({}, accelerator={"resourceName": "example.com/gpu"})
    assert renamed["spec"]["template"]["spec"]["tolerations"] == [
        {**OF_GPU_NODES, "key": "example.com/gpu"}
    ]
    cpu = deployment({}, accelerator={"type": "cpu"})
    assert "tolerations" not in cpu["spec"]["template"]["spec"]


def test_a_spread_without_a_selector_counts_the_pods_of_the_service_and_revision() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    assert pod_spec({"topologySpreadConstraints": [constraint]})["topologySpreadConstraints"] == [
        {
            **constraint,
            "labelSelector": {"matchLabels": {"llmservice.dev/name": "qwen"}},
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]


def test_labels_and_annotations_are_added_to_those_of_the_operator() -> None:
    plain = deployment({})["spec"]["template"]["metadata"]
    given = {"labels": {"team": "search"}, "annotations": {"example.com/note": "x"}}
    metadata = deployment(given)["spec"]["template"]["metadata"]
    assert metadata == {
        "labels": {**plain["labels"], "team": "search"},
        "annotations": {"example.com/note": "x"},
    }
    assert deployment(given)["metadata"] == deployment({})["metadata"]


def test_a_custom_account_gets_no_token_either() -> None:
    assert pod_spec({"serviceAccountName": "team"})["automountServiceAccountToken"] is False
