"""Tests the provider that scales a service, and the stabilization window of a scale-down."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import ExternalMetrics, LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.desired import Autoscaler
from llmservice_operator.desired.provider import ProviderPlan, plan_provider, total_load
from llmservice_operator.settings import OperatorSettings
from operator_support.report import a_report
from operator_support.services import NOW, a_service

OURS = ExternalMetrics(is_served=True, message="Ours.")
SOON = ExternalMetrics(is_served=False, message="Not yet.")
FOREIGN = ExternalMetrics(is_served=False, owner="datadog/agent", message="Theirs.")


def plan(
    provider: str = "Auto",
    external: ExternalMetrics | None = OURS,
    *,
    keda: bool = False,
    confined: bool = False,
    metrics_api: bool = True,
    before: str | None = None,
    silent: bool = False,
    **autoscaling: Any,
) -> ProviderPlan:
    status = {} if before is None else {"autoscaling": {"provider": before}}
    service = a_service(
        {"autoscaling": {"maxReplicas": 4, "provider": provider, **autoscaling}}, status=status
    )
    settings = OperatorSettings(
        watch_namespaces=("team",) if confined else (), metrics_api=metrics_api
    )
    report = None if silent else a_report(external_metrics=external)
    return plan_provider(service, settings, report, None, NOW, keda_is_installed=keda)


@pytest.mark.parametrize(
    ("found", "provider"),
    [
        (plan, "External"),
        (partial(plan, external=SOON), "External"),
        (partial(plan, external=None), "External"),
        (partial(plan, external=FOREIGN), "Direct"),
        (partial(plan, external=FOREIGN, keda=True), "KEDA"),
        (partial(plan, external=OURS, keda=True), "External"),
        (partial(plan, external=SOON, confined=True), "Direct"),
        (partial(plan, external=OURS, confined=True), "External"),
        (partial(plan, external=SOON, metrics_api=False), "Direct"),
        (partial(plan, external=SOON, metrics_api=False, keda=True), "KEDA"),
        (partial(plan, silent=True, metrics_api=False), "Direct"),
        (partial(plan, silent=True, metrics_api=False, before="External"), "Direct"),
        (partial(plan, "External", SOON, metrics_api=False), None),
        (partial(plan, silent=True), "External"),
        (partial(plan, silent=True, before="Direct"), "Direct"),
        (partial(plan, silent=True, before="KEDA", keda=True), "KEDA"),
        (partial(plan, silent=True, before="KEDA"), "External"),
        (partial(plan, external=OURS, before="Direct"), "External"),
        (partial(plan, "Direct"), "Direct"),
        (partial(plan, "External", FOREIGN), None),
        (partial(plan, "KEDA", keda=True), "KEDA"),
        (partial(plan, "KEDA"), None),
    ],
)
def test_auto_looks_first_and_never_fights_an_owner(
    found: Callable[[], ProviderPlan], provider: str | None
) -> None:
    chosen = found().autoscaler.provider
    assert (chosen and chosen.value) == provider


def test_the_plan_says_who_owns_the_api_and_what_is_done_instead() -> None:
    assert plan(external=FOREIGN).note == (
        "external.metrics.k8s.io belongs to datadog/agent in this cluster and is left alone; the "
        "operator itself scales instead."
    )
    assert plan(external=FOREIGN, keda=True).note.endswith("; KEDA scales instead.")
    assert plan("External", FOREIGN).hindrance is Reason.FOREIGN_METRICS_API
    assert plan("KEDA").hindrance is Reason.KEDA_MISSING


def test_the_plan_names_the_chart_value_that_switches_the_api_off() -> None:
    assert plan(external=SOON, metrics_api=False).note == (
        "The chart value metricsAPI.enabled is false, so the operator serves no "
        "external.metrics.k8s.io; the operator itself scales instead."
    )


@pytest.mark.parametrize("mode", ["Recommend", "Paused"])
def test_a_service_that_is_only_watched_has_no_autoscaler(mode: str) -> None:
    assert plan(mode=mode).autoscaler.provider is None


def hpa(window: int, age: float = 1000) -> Manifest:
    written = (NOW - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"managedFields": [{"manager": names.FIELD_MANAGER, "time": written}]},
        "spec": {
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": window}, "scaleUp": {}},
        },
    }


def scaled_object(window: int) -> Manifest:
    live = hpa(window)
    spec = {"advanced": {"horizontalPodAutoscalerConfig": live["spec"]}}
    return {**live, "kind": "ScaledObject", "spec": spec}


def planned(live: Manifest | None, report: LoadReport | None) -> Autoscaler:
    service = a_service({"autoscaling": {"maxReplicas": 4}})
    return plan_provider(
        service, OperatorSettings(), report, live, NOW, keda_is_installed=False
    ).autoscaler


@pytest.mark.parametrize(
    ("live", "learned", "window"),
    [
        (None, None, 180),
        (None, 120.4, 120),
        (hpa(90), None, 90),
        (hpa(90), 600, 600),
        (hpa(90, age=20), 600, 600),
        (hpa(600, age=290), 90, 600),
        (hpa(600, age=310), 90, 90),
        (hpa(100), 108, 100),
        (hpa(100), 112, 112),
    ],
)
def test_the_window_follows_the_learned_one_in_few_steps(
    live: Manifest | None, learned: float | None, window: int
) -> None:
    known = {"demand_percent": 60.0, "scale_down_window_seconds": learned}
    found = planned(live, None if learned is None else a_report(**known))
    assert found.window_seconds == window
    assert found.with_tolerance is (live is None)


@pytest.mark.parametrize("live", [hpa(600), scaled_object(600)], ids=["HPA", "ScaledObject"])
def test_an_unknown_load_does_not_shorten_the_window(live: Manifest) -> None:
    unknown = a_report(demand_percent=None, scale_down_window_seconds=180.0)
    assert planned(live, unknown).window_seconds == 600
    known = a_report(demand_percent=60.0, scale_down_window_seconds=180.0)
    assert planned(live, known).window_seconds == 180


def test_the_tolerance_is_sent_again_when_it_is_offered() -> None:
    service = a_service({"autoscaling": {"maxReplicas": 4}})
    found = plan_provider(
        service,
        OperatorSettings(),
        None,
        hpa(90),
        NOW,
        keda_is_installed=False,
        offers_tolerance=True,
    )
    assert found.autoscaler.with_tolerance


def test_a_scaled_object_does_not_tell_whether_an_hpa_keeps_the_tolerance() -> None:
    assert planned(scaled_object(180), None).with_tolerance


def test_nothing_else_scales_while_a_scaled_object_cannot_be_removed() -> None:
    for spec in ({"autoscaling": {"maxReplicas": 4, "provider": "Direct"}}, {"replicas": 2}):
        found = plan_provider(
            a_service(spec),
            OperatorSettings(),
            None,
            None,
            NOW,
            keda_is_installed=False,
            unremovable="qwen",
        )
        assert found.autoscaler.provider is None
        assert found.left_over == (
            "KEDA scales by the ScaledObject qwen, and the operator has no rights on it. Run "
            "`kubectl delete scaledobject qwen -n team`, or set the chart value keda.enabled."
        )


@pytest.mark.parametrize(
    ("metric", "total"),
    [
        ("EffectiveGPUUtilization", 170.0),
        ("GPUDutyCycle", 190.0),
        ("KVCacheUsage", 20.0),
        ("RequestsWaiting", 7.0),
    ],
)
def test_each_metric_is_read_from_the_report_and_a_stale_one_is_unknown(
    metric: str, total: float
) -> None:
    autoscaling = a_service({"autoscaling": {"maxReplicas": 4, "metric": metric}}).spec.autoscaling
    assert autoscaling is not None
    numbers: dict[str, Any] = {
        "demand_percent": 170.0,
        "gpu_duty_cycle_percent": 190.0,
        "kv_cache_percent": 20.0,
        "requests_waiting": 7.0,
    }
    fresh = a_report(at=NOW.timestamp() - 50, **numbers)
    assert total_load(autoscaling, fresh, NOW) == total
    assert total_load(autoscaling, a_report(at=NOW.timestamp() - 61, **numbers), NOW) is None
    assert total_load(autoscaling, None, NOW) is None


@pytest.mark.parametrize("keeps", [True, False])
def test_the_tolerance_is_sent_unless_the_api_server_dropped_it(keeps: bool) -> None:
    live = hpa(90)
    live["spec"]["behavior"]["scaleUp"] = {"tolerance": "50m"} if keeps else {}
    assert planned(live, None).with_tolerance is keeps
