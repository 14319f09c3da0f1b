"""Tests the autoscaler's object, and the ownership of the number of replicas."""

from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.children.horizontal_pod_autoscaler import CHILD
from llmservice_operator.desired import Autoscaler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import (
    build_hand_over,
    first_replicas,
    is_handed_over,
    resolve_pin,
    resolve_replicas,
)
from operator_support.services import SETTINGS, a_service, as_live

AUTOSCALING = {"autoscaling": {"minReplicas": 2, "maxReplicas": 24}}


def objects(
    service: LLMService,
    autoscaler: Autoscaler | None = None,
    live: Manifest | None = None,
    **further: Any,
) -> dict[str, Manifest]:
    settings = OperatorSettings(
        images=SETTINGS.images, metrics_server_url="http://metrics:8081", **further
    )
    built = build_all(
        Context.of(
            service,
            settings,
            resolve_pin(service, None, settings),
            resolve_replicas(service, live),
            autoscaler,
        )
    )
    return {manifest["kind"]: manifest for manifest in built}


def hpa(**autoscaling: Any) -> dict[str, Any]:
    service = a_service({"autoscaling": {"maxReplicas": 24, **autoscaling}})
    spec: dict[str, Any] = objects(service)["HorizontalPodAutoscaler"]["spec"]
    return spec


def test_the_hpa_divides_the_services_demand_by_the_target() -> None:
    spec = hpa(minReplicas=2, targetGPUUtilization=70)
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 24)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "qwen"}
    assert spec["metrics"] == [
        {
            "type": "External",
            "external": {
                "metric": {
                    "name": "llm_gpu_demand_percent",
                    "selector": {"matchLabels": {"llmservice": "qwen"}},
                },
                "target": {"type": "AverageValue", "averageValue": "70"},
            },
        }
    ]


@pytest.mark.parametrize(
    ("metric", "name", "target"),
    [
        ("GPUDutyCycle", "llm_gpu_duty_cycle_percent", "85"),
        ("KVCacheUsage", "llm_kv_cache_usage_percent", "85"),
        ("RequestsWaiting", "llm_requests_waiting", "5"),
    ],
)
def test_another_metric_has_its_own_name_and_unit(metric: str, name: str, target: str) -> None:
    external = hpa(metric=metric)["metrics"][0]["external"]
    assert external["metric"]["name"] == name
    assert external["target"]["averageValue"] == target


def test_the_hpa_scales_up_to_the_maximum_in_one_step_and_down_by_halves() -> None:
    behavior = hpa()["behavior"]
    assert behavior["scaleUp"] == {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [{"type": "Pods", "value": 24, "periodSeconds": 15}],
        "tolerance": "0",
    }
    assert behavior["scaleDown"]["policies"] == [
        {"type": "Percent", "value": 50, "periodSeconds": 60}
    ]


def test_the_window_is_the_learned_one_and_the_tolerance_left_out_where_it_is_dropped() -> None:
    built = objects(a_service(AUTOSCALING), Autoscaler(ScalingProvider.EXTERNAL, 333, False))
    behavior = built["HorizontalPodAutoscaler"]["spec"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 333
    assert "tolerance" not in behavior["scaleUp"] | behavior["scaleDown"]


def test_an_older_api_server_gets_the_same_object_without_the_field_it_does_not_know() -> None:
    service = a_service(AUTOSCALING)
    plain = objects(service, Autoscaler(ScalingProvider.EXTERNAL, with_tolerance=False))
    sent = objects(service)["HorizontalPodAutoscaler"]
    refusal = "spec.behavior.scaleUp.tolerance: unknown field"
    assert CHILD.substitute(sent, refusal) == plain["HorizontalPodAutoscaler"] != sent


@pytest.mark.parametrize("mode", ["Recommend", "Paused"])
def test_nothing_scales_a_service_that_is_only_watched(mode: str) -> None:
    service = a_service({"autoscaling": {"maxReplicas": 3, "mode": mode}})
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & set(objects(service))


def test_keda_reads_the_metrics_servers_report_and_holds_without_it() -> None:
    service = a_service({"autoscaling": {"maxReplicas": 3, "provider": "KEDA"}})
    spec = objects(service)["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "qwen"}
    assert spec["triggers"] == [
        {
            "type": "metrics-api",
            "metricType": "AverageValue",
            "metadata": {
                "url": "http://metrics:8081/v1/scaling/team/qwen",
                "valueLocation": "demandPercent",
                "targetValue": "85",
            },
        }
    ]
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


@pytest.mark.parametrize("kind", ["TriggerAuthentication", "ClusterTriggerAuthentication"])
def test_keda_sends_the_token_that_the_setting_names(kind: str) -> None:
    service = a_service({"autoscaling": {"maxReplicas": 3, "provider": "KEDA"}})
    built = objects(service, trigger_authentication=f"{kind}/reports")
    (trigger,) = built["ScaledObject"]["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"kind": kind, "name": "reports"}
    assert trigger["metadata"]["authMode"] == "bearer"


@pytest.mark.parametrize(("provider", "stays"), [("External", True), ("KEDA", False)])
def test_a_suspended_service_has_no_object_that_would_scale_it_up(
    provider: str, stays: bool
) -> None:
    scaling = {"maxReplicas": 3, "provider": provider}
    built = objects(a_service({"autoscaling": scaling, "suspend": True}))
    assert bool({"HorizontalPodAutoscaler", "ScaledObject"} & set(built)) is stays


def test_scaling_by_the_operator_needs_no_object() -> None:
    service = a_service({"autoscaling": {"maxReplicas": 3, "provider": "Direct"}})
    assert not {"HorizontalPodAutoscaler", "ScaledObject"} & set(objects(service))


def running(replicas: int, service: LLMService, **annotations: str) -> Manifest:
    live = as_live(objects(service)["Deployment"])
    live["spec"]["replicas"] = replicas
    live["metadata"].setdefault("annotations", {}).update(annotations)
    live["metadata"]["uid"] = "uid-deployment"
    return live


def test_an_autoscaled_deployment_is_sent_without_replicas() -> None:
    service = a_service(AUTOSCALING)
    assert "replicas" not in objects(service, live=running(7, service))["Deployment"]["spec"]


def test_the_replicas_are_handed_over_before_they_are_left_out() -> None:
    fixed, autoscaled = a_service({"replicas": 3}), a_service(AUTOSCALING)
    live = running(3, fixed)
    assert is_handed_over(fixed, live)
    assert not is_handed_over(autoscaled, live)
    assert is_handed_over(autoscaled, running(3, autoscaled))
    assert build_hand_over(live, 3) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "qwen",
            "namespace": "team",
            "uid": "uid-deployment",
            "resourceVersion": "7",
        },
        "spec": {"replicas": 3},
    }


def test_a_service_whose_autoscaling_was_removed_keeps_its_replicas() -> None:
    before = a_service(AUTOSCALING)
    removed = a_service(status={"autoscaling": {"desiredReplicas": 6}})
    first = resolve_replicas(removed, running(7, before))
    assert first.is_kept_now
    deployment = objects(removed, live=running(7, before))["Deployment"]
    assert deployment["spec"]["replicas"] == 7

    # The Deployment itself stores the number. So a change by another client is undone even after
    # the status is lost.
    later = resolve_replicas(
        a_service(), running(9, before, **deployment["metadata"]["annotations"])
    )
    assert (later.sent, later.is_kept_now) == (7, False)


def test_a_suspended_service_has_no_replicas_and_remembers_how_many_there_were() -> None:
    suspended = a_service({**AUTOSCALING, "suspend": True})
    live = running(0, a_service({"replicas": 1}))
    assert resolve_replicas(suspended, live).sent == 0
    assert is_handed_over(suspended, live)
    assert first_replicas(suspended) == 0
    assert not is_handed_over(a_service(AUTOSCALING), live)

    kept = running(7, a_service(), **{names.KEPT_REPLICAS_ANNOTATION: "7"})
    assert resolve_replicas(a_service({"suspend": True}), kept).sent == 0
    assert resolve_replicas(a_service({"suspend": True}), kept).annotations


def test_replicas_in_the_spec_replace_the_kept_number() -> None:
    live = running(9, a_service(), **{names.KEPT_REPLICAS_ANNOTATION: "9"})
    for spec in ({"replicas": 2}, AUTOSCALING):
        deployment = objects(a_service(spec), live=live)["Deployment"]
        assert names.KEPT_REPLICAS_ANNOTATION not in deployment["metadata"]["annotations"]
    assert resolve_replicas(a_service({"replicas": 2}), live).sent == 2


def test_a_new_deployment_starts_with_the_minimum_or_the_previous_replicas() -> None:
    assert first_replicas(a_service(AUTOSCALING)) == 2
    known = {"autoscaling": {"desiredReplicas": 30}}
    assert first_replicas(a_service(AUTOSCALING, status=known)) == 24
    assert first_replicas(a_service({"replicas": 5})) == 5
