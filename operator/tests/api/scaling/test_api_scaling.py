"""Tests the operator's use of the load that the metrics server reports."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.load_report import ExternalMetrics, ReplicaLoad
from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, EVENTS, LLMSERVICES, PODS
from llmservice_operator.names import DELETION_COST_ANNOTATION
from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.calibration import calibration_of
from llmservice_operator.scaling.step_model import StepModelFit
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    make_service,
    until_settled,
    writes_nothing,
)
from operator_support.report import ReportSource, report_source
from operator_support.scaling import TRUTH, service
from shared_support.waiting import eventually, holds_for

SYNC_SECONDS = 25.0
"""Time limit in seconds. The load is processed every 15 s."""

FOREIGN = ExternalMetrics(
    is_served=False, owner="keda/keda-operator-metrics-apiserver", message="It belongs to KEDA."
)
OURS = ExternalMetrics(is_served=True, message="It is ours.")
LEARNED = Calibration(
    step_seconds=(0.01, 0.00004, 0.00002, 0.0),
    capacity_factor=0.9,
    prompt_lengths=(1.0,) * 21,
    answer_lengths=(1.0,) * 21,
    mean_prompt_tokens=100.0,
    mean_answer_tokens=100.0,
    computed_share=1.0,
    kv_tokens_per_sequence=150.0,
)


@pytest.fixture(scope="module")
def source() -> Iterator[ReportSource]:
    with report_source() as found:
        yield found


@pytest.fixture(scope="module")
def watching(
    api: Api,
    source: ReportSource,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[OperatorProcess, str]]:
    """An operator that reads reports, and the namespace that it serves."""
    namespace = f"scaling-{source.url.rpartition(':')[2]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    log = tmp_path_factory.mktemp("scaling") / "log"
    settings = {"WATCH_NAMESPACES": namespace, "METRICS_SERVER_URL": source.url}
    with OperatorProcess(log, namespace, **settings) as process:
        yield process.until_leading(), namespace
    # The operator of a later test may watch all namespaces, and must find no leftover service.
    api.request("DELETE", LLMSERVICES.path(namespace))
    api.request("DELETE", f"/api/v1/namespaces/{namespace}")


def replicas(api: Api, namespace: str, name: str) -> int:
    found: int = api.get(DEPLOYMENTS, namespace, name)["spec"]["replicas"]
    return found


def until_replicas(api: Api, namespace: str, name: str, number: int) -> None:
    eventually(lambda: replicas(api, namespace, name) == number, SYNC_SECONDS, f"{number} replicas")


def template_hashes(api: Api, namespace: str, name: str) -> set[str]:
    """Return the hashes of all pod templates that the Deployment ever had."""
    found = api.request("GET", f"/apis/apps/v1/namespaces/{namespace}/replicasets")["items"]
    return {
        each["metadata"]["labels"]["pod-template-hash"]
        for each in found
        if each["metadata"]["ownerReferences"][0]["name"] == name
    }


def an_hour_of_learning() -> Iterator[Calibration]:
    """Yield the calibrations of one hour of learning, from a wrong prior and a varying load."""
    learning = service()
    learning.state = ScalingState(StepModelFit(TRUTH.scaled(3)))
    for minutes in range(0, 60, 5):
        learning.run(300, rate=4 + minutes / 4, met=0.9 if minutes % 20 else 1.0)
        learned = calibration_of(learning.state)
        assert learned is not None
        yield learned


def until_reason(
    api: Api, namespace: str, name: str, kind: str, reason: str, timeout: float = SYNC_SECONDS
) -> dict[str, Any]:
    def found() -> dict[str, Any]:
        each = condition(api.get(LLMSERVICES, namespace, name), kind)
        assert each["reason"] == reason, each
        return each

    return eventually(found, timeout)


@pytest.mark.causes("FollowingLoad", "AtMaximum", "MetricsMissing", "MetricsAvailable")
def test_the_operator_itself_scales_while_the_metrics_api_has_another_owner(
    api: Api, watching: tuple[OperatorProcess, str], source: ReportSource, name: str
) -> None:
    operator, namespace = watching
    source.say(namespace, name, demand_percent=300.0, external_metrics=FOREIGN)
    api.create(LLMSERVICES, make_service(name, namespace, autoscaling={"maxReplicas": 8}))
    until_replicas(api, namespace, name, 4)
    template = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]
    told = until_reason(api, namespace, name, "AutoscalingActive", "FollowingLoad")
    assert "belongs to keda/keda-operator-metrics-apiserver" in told["message"]
    assert "the operator itself scales instead" in told["message"]
    assert api.read(AUTOSCALERS, namespace, name) is None

    # The demand exceeds the maximum, and the report has a calibration.
    source.say(
        namespace, name, demand_percent=1000.0, external_metrics=FOREIGN, calibration=LEARNED
    )
    until_replicas(api, namespace, name, 8)
    until_reason(api, namespace, name, "AutoscalingActive", "AtMaximum")
    status = api.get(LLMSERVICES, namespace, name)["status"]["autoscaling"]
    assert status["provider"] == "Direct"
    assert (status["desiredReplicas"], status["target"]) == (8, 85)
    newest = status["decisions"][0]
    assert (newest["fromReplicas"], newest["toReplicas"]) == (4, 8)
    assert {each["field"] for each in status["recommendations"]} == {
        "autoscaling.maxReplicas",
        "engine.batching.maxNumBatchedTokens",
    }
    assert api.get(DEPLOYMENTS, namespace, name)["spec"]["template"] == template

    # An unknown load never counts as zero.
    source.be_silent(namespace, name)
    until_reason(api, namespace, name, "MetricsAvailable", "MetricsMissing")
    until_settled(operator)
    with writes_nothing(operator):
        holds_for(5, lambda: replicas(api, namespace, name) == 8)

    # One pod has no running requests, so it is deleted first.
    pods = [pod["metadata"]["name"] for pod in api.list_all(PODS, namespace)]
    loads = {pod: 9 for pod in pods} | {pods[-1]: 0}
    source.say(
        namespace,
        name,
        demand_percent=500.0,
        external_metrics=FOREIGN,
        scale_down_window_seconds=0.0,
        replicas=tuple(
            ReplicaLoad(pod=pod, is_ready=True, running_requests=running, kv_cache_percent=20.0)
            for pod, running in loads.items()
        ),
    )
    until_replicas(api, namespace, name, 6)

    def costs() -> dict[str, str]:
        return {
            pod["metadata"]["name"]: pod["metadata"]["annotations"][DELETION_COST_ANNOTATION]
            for pod in api.list_all(PODS, namespace)
            if "deletionTimestamp" not in pod["metadata"]
        }

    eventually(lambda: len(costs()) == 6)
    assert pods[-1] not in costs()
    assert set(costs().values()) == {"3020"}
    reasons = {event["reason"] for event in api.list_all(EVENTS, namespace)}
    assert {"AtMaximum", "MetricsMissing"} <= reasons


def test_an_hour_of_learning_changes_no_pod_template(
    api: Api, watching: tuple[OperatorProcess, str], source: ReportSource, name: str
) -> None:
    operator, namespace = watching
    source.say(namespace, name, demand_percent=60.0, external_metrics=OURS)
    spec = {
        "model": {"uri": "hf://Qwen/Qwen2.5-7B-Instruct"},
        "accelerator": {"class": "H100"},
        "autoscaling": {"maxReplicas": 8},
    }
    api.create(LLMSERVICES, make_service(name, namespace, **spec))
    until_settled(operator)
    template = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]
    arguments = template["spec"]["containers"][0]["args"]
    hashes = eventually(lambda: template_hashes(api, namespace, name))

    advice: set[str] = set()
    for number, calibration in enumerate(an_hour_of_learning()):
        # The load changes at the same time, so that the learned values are also reported.
        source.say(
            namespace,
            name,
            demand_percent=40.0 + 20 * (number % 2),
            external_metrics=OURS,
            calibration=calibration,
            capacity_factor=calibration.capacity_factor,
        )
        passes = operator.metric("controller_runtime_reconcile_total")
        api.patch(
            LLMSERVICES, namespace, name, {"metadata": {"labels": {"minute": f"m{5 * number}"}}}
        )
        eventually(partial(has_passed, operator, passes))
        until_settled(operator)
        advice |= recommended(api, namespace, name)
    # On a busy machine, the passes may be faster than the reports.
    advice |= eventually(lambda: recommended(api, namespace, name))

    # The operator received the calibrations: it recommends another number of tokens for a step
    # than the pods have, and does nothing else.
    (tokens,) = advice
    assert f"--max-num-batched-tokens={tokens}" not in arguments
    assert "--max-num-batched-tokens=1600" in arguments
    assert api.get(DEPLOYMENTS, namespace, name)["spec"]["template"] == template
    assert template_hashes(api, namespace, name) == hashes
    assert len(hashes) == 1


def recommended(api: Api, namespace: str, name: str) -> set[str]:
    status = api.get(LLMSERVICES, namespace, name)["status"]["autoscaling"]
    return {each["value"] for each in status.get("recommendations", ())}


def has_passed(operator: OperatorProcess, passes: float) -> bool:
    return operator.metric("controller_runtime_reconcile_total") > passes


@pytest.mark.causes("SLOMet", "SLOMissed")
def test_the_slo_attainment_is_reported_and_a_missed_objective_is_an_event(
    api: Api, watching: tuple[OperatorProcess, str], source: ReportSource, name: str
) -> None:
    operator, namespace = watching
    measured = {"ttft_p95_milliseconds": 812.4, "itl_p95_milliseconds": 20.0}
    source.say(namespace, name, demand_percent=60.0, attainment_percent=80.0, **measured)
    service = make_service(name, namespace, replicas=2, slo={"ttftMilliseconds": 600})
    api.create(LLMSERVICES, service)
    told = until_reason(api, namespace, name, "SLOMet", "SLOMissed")
    assert told["message"].startswith(
        "80 % of the requests were within a TTFT of 600 ms; the objective is 95 %."
    )
    assert api.get(LLMSERVICES, namespace, name)["status"]["slo"] == {
        "ttftP95": 812,
        "itlP95": 20,
        "attainmentPercent": 80,
    }
    # A change of less than five percentage points causes no write. The services of earlier tests
    # may still be scaled, so only the writes of this service count.
    until_settled(operator)
    version = api.get(LLMSERVICES, namespace, name)["metadata"]["resourceVersion"]
    source.say(namespace, name, demand_percent=60.0, attainment_percent=83.0, **measured)
    passes = operator.metric("controller_runtime_reconcile_total")
    eventually(lambda: has_passed(operator, passes), SYNC_SECONDS)
    assert api.get(LLMSERVICES, namespace, name)["metadata"]["resourceVersion"] == version
    api.patch(LLMSERVICES, namespace, name, {"spec": {"slo": {"ttftMilliseconds": None}}})

    def is_gone() -> bool:
        status = api.get(LLMSERVICES, namespace, name)["status"]
        return "slo" not in status and "SLOMet" not in {it["type"] for it in status["conditions"]}

    eventually(is_gone)


@pytest.mark.causes("Recommending", "Paused")
def test_a_recommendation_and_a_pause_change_nothing(
    api: Api, watching: tuple[OperatorProcess, str], source: ReportSource, name: str
) -> None:
    _, namespace = watching
    source.say(namespace, name, demand_percent=400.0, external_metrics=OURS)
    scaling = {"maxReplicas": 8, "mode": "Recommend"}
    api.create(LLMSERVICES, make_service(name, namespace, autoscaling=scaling))
    until_reason(api, namespace, name, "AutoscalingActive", "Recommending")
    eventually(
        lambda: (
            api.get(LLMSERVICES, namespace, name)["status"]["autoscaling"]["desiredReplicas"] == 5
        )
    )
    assert replicas(api, namespace, name) == 1
    assert api.read(AUTOSCALERS, namespace, name) is None

    def switch(mode: str) -> None:
        api.patch(LLMSERVICES, namespace, name, {"spec": {"autoscaling": {"mode": mode}}})

    switch("Active")
    hpa = eventually(lambda: api.read(AUTOSCALERS, namespace, name))
    assert hpa is not None
    assert hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 90
    switch("Paused")
    eventually(lambda: api.read(AUTOSCALERS, namespace, name) is None)
    until_reason(api, namespace, name, "AutoscalingActive", "Paused")
