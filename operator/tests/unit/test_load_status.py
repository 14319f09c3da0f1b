"""Tests the status of load, scaling and SLO, and that it rarely changes."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.api.conditions import ConditionType, ConditionUpdate
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.status import AutoscalingStatus
from llmservice_operator.desired import Autoscaler
from llmservice_operator.desired.provider import ProviderPlan
from llmservice_operator.load_status import (
    FIRST_REPORT_WITHIN,
    LoadStatus,
    LoadView,
    build_load_status,
)
from llmservice_operator.status import build_status
from llmservice_operator.workload import EnginePin, Observation, Problem
from operator_support.report import a_report
from operator_support.services import NOW, a_service

PLAN = ProviderPlan(Autoscaler(ScalingProvider.EXTERNAL))
TWO = Observation(
    desired=2,
    replicas=2,
    updated_replicas=2,
    ready_replicas=2,
    is_rolled_out=True,
    has_loaded_model=True,
)
AUTOSCALED = {"autoscaling": {"maxReplicas": 8}}
KNOWN = {
    "conditions": [
        {
            "type": "MetricsAvailable",
            "status": "True",
            "reason": "MetricsAvailable",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
}
"""Status of a service whose load was known before."""


def view(demand: float | None = 120.0, **report: Any) -> LoadView:
    return LoadView(PLAN, a_report(at=NOW.timestamp(), demand_percent=demand, **report))


def status(
    view: LoadView,
    seen: Observation = TWO,
    spec: dict[str, Any] | None = None,
    before: dict[str, Any] | None = None,
) -> LoadStatus:
    service = a_service(AUTOSCALED if spec is None else spec, status=before or {})
    return build_load_status(service, view, seen, seen.desired or 0, NOW)


def condition(found: LoadStatus, kind: ConditionType) -> ConditionUpdate:
    return next(each for each in found.conditions if each.type is kind)


def active(*args: Any, **kwargs: Any) -> ConditionUpdate:
    return condition(status(*args, **kwargs), ConditionType.AUTOSCALING_ACTIVE)


def scaling(found: LoadStatus) -> AutoscalingStatus:
    assert found.autoscaling is not None
    return found.autoscaling


def test_the_status_has_the_load_and_the_target_of_each_replica() -> None:
    found = scaling(status(view()))
    assert (found.provider, found.desired_replicas) == ("External", 2)
    assert (found.current, found.target, found.load) == (60, 85, "60/85")
    assert found.limiting_metric == "EffectiveGPUUtilization"
    assert active(view()).reason is Reason.FOLLOWING_LOAD


def test_less_than_five_points_change_nothing_and_five_do() -> None:
    before = {"autoscaling": {"desiredReplicas": 2, "current": 60, "target": 85}}
    for demand, current in ((128.0, 60), (112.0, 60), (130.0, 65), (108.0, 54)):
        assert scaling(status(view(demand), before=before)).current == current
    assert scaling(status(view(None), before=before)).current is None


def test_the_last_ten_decisions_are_kept_with_their_causes() -> None:
    earlier = [
        {"time": "2026-01-01T00:00:00Z", "fromReplicas": n, "toReplicas": n + 1, "reason": "r"}
        for n in range(10)
    ]
    before = {"autoscaling": {"desiredReplicas": 2, "current": 60, "decisions": earlier}}
    hpa = {"status": {"desiredReplicas": 4}}
    found = scaling(status(replace(view(301.0), autoscaler=hpa), before=before))
    newest, *rest = found.decisions or ()
    assert (newest.from_replicas, newest.to_replicas) == (2, 4)
    assert newest.time == "2026-01-02T03:04:05Z"
    assert newest.reason == "EffectiveGPUUtilization 301 %, 85 % for each replica"
    assert [each.from_replicas for each in rest] == list(range(9))
    assert found.current == 150


def test_the_first_pass_is_no_decision() -> None:
    assert scaling(status(view())).decisions is None


def test_a_queue_is_named_as_the_limit() -> None:
    assert scaling(status(view(backlog_gpu_seconds=3.0))).limiting_metric == "Backlog"


def test_at_the_maximum_the_status_says_how_many_replicas_the_load_needs() -> None:
    spec = {"autoscaling": {"maxReplicas": 2}}
    found = status(view(400.0), spec=spec)
    said = condition(found, ConditionType.AUTOSCALING_ACTIVE)
    assert (said.status, said.reason) == ("True", Reason.AT_MAXIMUM)
    assert said.message.startswith("At the maximum of 2 replicas, each is at 200/85.")
    (recommended,) = scaling(found).recommendations or ()
    assert (recommended.field, recommended.value) == ("autoscaling.maxReplicas", "5")


def test_a_cluster_without_room_is_reported_with_the_schedulers_message() -> None:
    problem = Problem(Reason.WAITING_FOR_GPU, "0/3 nodes have a GPU.")
    seen = replace(TWO, desired=4, is_rolled_out=False, problem=problem)
    said = active(view(300.0), seen)
    assert said.reason is Reason.NO_CAPACITY
    assert said.message.startswith("2 of 4 replicas run.")
    assert said.message.endswith("0/3 nodes have a GPU.")


@pytest.mark.parametrize(("seconds", "is_late"), [(180, False), (181, True)])
def test_a_replica_that_is_not_ready_after_three_cold_starts_is_reported(
    seconds: int, is_late: bool
) -> None:
    problem = Problem(Reason.LOADING_MODEL, "The model server starts.")
    since = NOW - timedelta(seconds=seconds)
    seen = replace(TWO, desired=4, is_rolled_out=False, problem=problem, not_ready_since=since)
    said = active(view(300.0, cold_start_seconds=60.0), seen)
    assert (said.reason is Reason.NO_CAPACITY) is is_late
    if is_late:
        assert said.status == "True"
        assert said.message == (
            "2 of 4 replicas run, and one was not ready within three cold starts. "
            f"{Reason.NO_CAPACITY.hint} The model server starts."
        )


def test_the_usual_wait_for_a_node_is_no_delay_of_a_replica() -> None:
    since = NOW - timedelta(seconds=200)
    seen = replace(TWO, desired=4, is_rolled_out=False, not_ready_since=since)
    found = [
        active(view(300.0, cold_start_seconds=60.0, node_wait_seconds=wait), seen).reason
        for wait in (30.0, 0.0)
    ]
    assert found == [Reason.FOLLOWING_LOAD, Reason.NO_CAPACITY]


def test_a_foreseen_rise_is_told_with_its_replicas_and_the_switch() -> None:
    said = active(view(160.0, foreseen_percent=250.0))
    assert said.reason is Reason.FOLLOWING_LOAD
    assert said.message.endswith(
        " At least 3 are kept ready, because the load usually rises at this time "
        "(forecast: Off stops this)."
    )
    assert "usually" not in active(view(160.0)).message


def test_a_late_replica_that_the_load_does_not_need_is_no_lack_of_capacity() -> None:
    seen = replace(TWO, not_ready_since=NOW - timedelta(days=1))
    assert active(view(), seen).reason is Reason.FOLLOWING_LOAD


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (LoadView(PLAN, None), Reason.METRICS_MISSING),
        (view(None, missing="ReplicasMissing"), Reason.METRICS_MISSING),
        (view(None, missing="NoTrafficYet"), Reason.WAITING_FOR_TRAFFIC),
        (LoadView(PLAN, a_report(at=NOW.timestamp() - 90, demand_percent=1.0)), None),
    ],
)
def test_an_unknown_load_holds_the_replicas_and_says_why(
    seen: LoadView, reason: Reason | None
) -> None:
    found = status(seen, before=KNOWN)
    for kind in (ConditionType.AUTOSCALING_ACTIVE, ConditionType.METRICS_AVAILABLE):
        assert condition(found, kind).status == "False"
        assert condition(found, kind).reason is (reason or Reason.METRICS_MISSING)
    assert scaling(found).load == "?/85"


def test_a_service_without_a_report_has_none_even_if_the_metrics_server_answers() -> None:
    found = status(LoadView(PLAN, None), before=KNOWN)
    said = condition(found, ConditionType.METRICS_AVAILABLE).message

    assert "The metrics server has sent no load report of this service lately." in said


def test_only_a_service_that_stays_without_a_first_report_lacks_metrics() -> None:
    started = NOW - FIRST_REPORT_WITHIN
    for since, reason in (
        (None, Reason.WAITING_FOR_TRAFFIC),
        (started + timedelta(seconds=1), Reason.WAITING_FOR_TRAFFIC),
        (started, Reason.METRICS_MISSING),
    ):
        first = {**KNOWN["conditions"][0], "status": "False", "reason": "WaitingForTraffic"}
        before = {} if since is None else {**first, "lastTransitionTime": since.isoformat()}
        found = status(LoadView(PLAN, None), before={"conditions": [before]} if before else {})
        for kind in (ConditionType.AUTOSCALING_ACTIVE, ConditionType.METRICS_AVAILABLE):
            assert condition(found, kind).reason is reason


def test_a_metric_that_the_controller_cannot_read_is_reported_with_its_message() -> None:
    problem = {"type": "ScalingActive", "status": "False", "message": "no such metric"}
    said = active(replace(view(), autoscaler={"status": {"conditions": [problem]}}))
    assert (said.status, said.reason) == ("False", Reason.METRICS_MISSING)
    assert "no such metric" in said.message


def test_a_controller_that_cannot_change_the_number_is_reported_with_its_message() -> None:
    problem = {"type": "AbleToScale", "status": "False", "message": "webhook denied the request"}
    said = active(replace(view(), autoscaler={"status": {"conditions": [problem]}}))
    assert (said.status, said.reason) == ("False", Reason.OBJECT_REFUSED)
    assert "cannot scale: webhook denied the request" in said.message


def test_the_lack_of_any_scaler_has_its_own_reason() -> None:
    plan = ProviderPlan(hindrance=Reason.KEDA_MISSING, note="No KEDA.")
    said = active(replace(view(), plan=plan))
    assert (said.status, said.reason) == ("False", Reason.KEDA_MISSING)
    assert said.message == (
        f"The number of replicas stays at 2. No KEDA. {Reason.KEDA_MISSING.hint}"
    )


@pytest.mark.parametrize(
    ("mode", "suspend"), [("Active", False), ("Paused", False), ("Active", True)]
)
def test_a_scaled_object_that_cannot_be_removed_is_reported_before_anything_else(
    mode: str, suspend: bool
) -> None:
    spec = {"autoscaling": {"maxReplicas": 8, "mode": mode}, "suspend": suspend}
    seen = replace(view(), plan=ProviderPlan(left_over="Delete it."))
    found = status(seen, spec=spec, before={"autoscaling": {"provider": "KEDA"}})
    said = condition(found, ConditionType.AUTOSCALING_ACTIVE)
    assert (said.status, said.reason) == ("False", Reason.KEDA_MISSING)
    assert said.message == "Delete it."
    assert scaling(found).provider == "KEDA"


@pytest.mark.parametrize("mode", ["Recommend", "Paused"])
def test_a_mode_that_holds_is_reported(mode: str) -> None:
    said = active(view(), spec={"autoscaling": {"maxReplicas": 3, "mode": mode}})
    assert said.status == "False"
    assert said.message.startswith("The number of replicas stays at 2.")


def test_the_status_of_a_suspended_service_keeps_its_replicas() -> None:
    before = {"autoscaling": {"desiredReplicas": 5, "current": 60}}
    nothing = Observation(desired=0, is_rolled_out=True)
    found = status(view(None), nothing, {**AUTOSCALED, "suspend": True}, before)
    assert scaling(found).desired_replicas == 5
    assert condition(found, ConditionType.AUTOSCALING_ACTIVE).reason is Reason.SUSPENDED


def slo(attainment: float | None, before: dict[str, Any] | None = None) -> LoadStatus:
    measured = {"ttft_p95_milliseconds": 300.2, "itl_p95_milliseconds": 31.0}
    return status(view(attainment_percent=attainment, **measured), before=before)


def slo_before(state: str, attainment: int) -> dict[str, Any]:
    condition = {
        "type": "SLOMet",
        "status": state,
        "reason": "SLOMet" if state == "True" else "SLOMissed",
        "message": "As before.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    return {"slo": {"attainmentPercent": attainment, "ttftP95": 1}, "conditions": [condition]}


@pytest.mark.parametrize(
    ("measured", "before", "met"),
    [
        (95.0, None, "True"),
        (94.9, None, "False"),
        (94.9, slo_before("True", 96), "False"),
        (95.5, slo_before("False", 94), "False"),
        (96.0, slo_before("False", 94), "True"),
        (None, None, "Unknown"),
        (None, slo_before("False", 94), "False"),
    ],
)
def test_the_slo_is_met_at_the_objective_and_again_a_point_above_it(
    measured: float | None, before: dict[str, Any] | None, met: str
) -> None:
    assert condition(slo(measured, before), ConditionType.SLO_MET).status == met


@pytest.mark.causes("SLOUnreachable")
def test_an_slo_that_an_idle_replica_misses_names_the_least_limits() -> None:
    found = status(view(attainment_percent=40.0, least_itl_milliseconds=61.2))
    told = condition(found, ConditionType.SLO_MET)
    assert (told.status, told.reason) == ("False", "SLOUnreachable")
    assert " An idle replica attains at best a mean ITL of 62 ms. Raise" in told.message
    both = view(attainment_percent=40.0, least_ttft_milliseconds=700.0, least_itl_milliseconds=61.2)
    assert "a TTFT of 700 ms and a mean ITL of 62 ms." in (
        condition(status(both), ConditionType.SLO_MET).message
    )


def test_the_message_on_an_unreachable_slo_changes_only_with_the_attainment() -> None:
    first = status(view(attainment_percent=40.0, least_itl_milliseconds=61.2))
    assert first.slo is not None
    told = condition(first, ConditionType.SLO_MET)
    before = slo_before("False", 40)
    before["conditions"][0] |= {"reason": str(told.reason), "message": told.message}
    again = status(view(attainment_percent=41.0, least_itl_milliseconds=63.0), before=before)
    assert condition(again, ConditionType.SLO_MET).message == told.message
    later = status(view(attainment_percent=50.0, least_itl_milliseconds=63.0), before=before)
    assert "ITL of 63 ms" in condition(later, ConditionType.SLO_MET).message


def test_an_slo_that_is_met_is_reachable() -> None:
    found = status(view(attainment_percent=99.0, least_itl_milliseconds=61.2))
    assert condition(found, ConditionType.SLO_MET).reason is Reason.SLO_MET


def test_the_slo_attainment_changes_by_five_points_or_with_the_verdict() -> None:
    for measured, kept in ((97.0, True), (100.0, True), (90.0, False)):
        found = slo(measured, slo_before("True", 98)).slo
        assert found is not None
        assert (found.ttft_p95 == 1) is kept


def test_a_service_without_autoscaling_and_slo_says_nothing_of_either() -> None:
    assert status(view(), spec={}) == LoadStatus(None, None, ())


def test_the_conditions_of_the_load_are_removed_with_their_fields() -> None:
    pin = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
    on = build_status(a_service(AUTOSCALED), pin, TWO, NOW, view=view())
    of_the_load = {"AutoscalingActive", "MetricsAvailable", "SLOMet"}
    assert of_the_load <= {each["type"] for each in on.status["conditions"]}
    off = build_status(a_service({"replicas": 2}, status=on.status), pin, TWO, NOW)
    assert not of_the_load & {each["type"] for each in off.status["conditions"]}
    assert "autoscaling" not in off.status


def test_every_limit_is_an_event_once() -> None:
    pin = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
    spec = {"autoscaling": {"maxReplicas": 2}}
    before = build_status(a_service(spec), pin, TWO, NOW, view=view())
    full = build_status(a_service(spec, status=before.status), pin, TWO, NOW, view=view(400.0))
    assert [(event.type, event.reason) for event in full.events] == [("Warning", "AtMaximum")]
    again = build_status(a_service(spec, status=full.status), pin, TWO, NOW, view=view(400.0))
    assert again.events == ()
    assert again.status == full.status
