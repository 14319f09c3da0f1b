"""spec.template -> the pod template: written as it was, with our own labels and defaults."""

from typing import Any

from core_support import SETTINGS, a_service, as_live, one
from llmservice_operator.api import Manifest
from llmservice_operator.desired import build_all, is_up_to_date, resolve_pin

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


def deployment(template: dict[str, Any]) -> Manifest:
    service = a_service({"template": template})
    manifests = build_all(service, SETTINGS, resolve_pin(service, None, SETTINGS))
    return one("Deployment", manifests)


def pod_spec(template: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = deployment(template)["spec"]["template"]["spec"]
    return found


def test_every_field_of_the_template_reaches_the_pods_as_it_was_written() -> None:
    assert EVERYTHING.items() <= pod_spec(EVERYTHING).items()
    assert not EVERYTHING.keys() & pod_spec({}).keys()


def test_a_template_that_the_api_server_holds_is_not_written_again() -> None:
    desired = deployment(EVERYTHING)
    assert is_up_to_date(as_live(desired), desired)
    assert not is_up_to_date(as_live(deployment({})), desired)
    assert not is_up_to_date(as_live(desired), deployment({}))


def test_empty_texts_of_a_toleration_are_left_out_as_the_api_server_does() -> None:
    toleration = {"key": "k", "operator": "Exists", "value": ""}
    pod = pod_spec({"tolerations": [toleration]})
    assert pod["tolerations"] == [{"key": "k", "operator": "Exists"}]


def test_a_spread_without_a_selector_counts_the_pods_of_the_service_and_revision() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    assert pod_spec({"topologySpreadConstraints": [constraint]})["topologySpreadConstraints"] == [
        {
            **constraint,
            "labelSelector": {"matchLabels": {"llmservice.dev/name": "qwen"}},
            "matchLabelKeys": ["pod-template-hash"],
        }
    ]


def test_labels_and_annotations_stand_beside_those_of_the_operator() -> None:
    plain = deployment({})["spec"]["template"]["metadata"]
    given = {"labels": {"team": "search"}, "annotations": {"example.com/note": "x"}}
    metadata = deployment(given)["spec"]["template"]["metadata"]
    assert metadata == {
        "labels": {**plain["labels"], "team": "search"},
        "annotations": {"example.com/note": "x"},
    }
    assert deployment(given)["metadata"] == deployment({})["metadata"]


def test_an_account_of_ones_own_gets_no_token_either() -> None:
    assert pod_spec({"serviceAccountName": "team"})["automountServiceAccountToken"] is False
