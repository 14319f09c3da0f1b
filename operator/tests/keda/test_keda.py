"""Tests the operator with KEDA, which owns the metrics API and scales by the load reports."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_operator.api.load_report import ExternalMetrics
from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES, PODS, SCALED_OBJECTS
from operator_support.metrics import Engine, MetricsServerProcess, make_pod
from operator_support.processes import (
    REPOSITORY,
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_service,
    until_settled,
    writes_nothing,
)
from operator_support.report import report_source
from shared_support.waiting import eventually, holds_for

OWNER = "keda/keda-adapter"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
NAMESPACE = "with-keda"
FOREIGN = ExternalMetrics(is_served=False, owner=OWNER, message="It belongs to KEDA.")
SYNC_SECONDS = 60.0
"""Time limit in seconds. KEDA polls every 5 s, and the HPA controller every 15 s. The first polls
may have no result."""
STEADY_SECONDS = 150.0
"""Time limit in seconds. The load is known after one minute."""


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """API server of a cluster with KEDA, our CRD and a namespace."""
    found = Api()
    found.apply_file(REPOSITORY / "crds" / "llmservice.yaml")
    # `kubectl wait` fails immediately while the object has no condition, so it is repeated.
    eventually(
        lambda: kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    )
    eventually(lambda: found.request("GET", LLMSERVICES.path("default")))
    found.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    yield found
    found.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")


def operator(log: Path, url: str, keda: str = "true") -> OperatorProcess:
    settings = {"WATCH_NAMESPACES": NAMESPACE, "METRICS_SERVER_URL": url, "KEDA": keda}
    return OperatorProcess(log, NAMESPACE, **settings)


def until_replicas(api: Api, name: str, number: int, seconds: float = SYNC_SECONDS) -> None:
    def replicas() -> int:
        found: int = api.get(DEPLOYMENTS, NAMESPACE, name)["spec"]["replicas"]
        return found

    eventually(lambda: replicas() == number, seconds, f"{number} replicas of {name}")


def test_a_service_follows_its_load_up_and_down_through_keda(api: Api, tmp_path: Path) -> None:
    with report_source() as source, operator(tmp_path / "log", source.url) as process:
        process.until_leading()
        told = {"external_metrics": FOREIGN, "scale_down_window_seconds": 0.0}
        source.say(NAMESPACE, "web", demand_percent=60.0, **told)
        service = make_service("web", NAMESPACE, autoscaling={"maxReplicas": 4})
        api.create(LLMSERVICES, service)
        eventually(lambda: api.get(SCALED_OBJECTS, NAMESPACE, "web"), SYNC_SECONDS)
        until_replicas(api, "web", 1)

        source.say(NAMESPACE, "web", demand_percent=160.0, **told)
        until_replicas(api, "web", 2)

        # An unknown load does not count as zero: KEDA falls back to the present number of replicas.
        source.be_silent(NAMESPACE, "web")
        holds_for(40, lambda: api.get(DEPLOYMENTS, NAMESPACE, "web")["spec"]["replicas"] == 2)

        source.say(NAMESPACE, "web", demand_percent=60.0, **told)
        until_replicas(api, "web", 1, 2 * SYNC_SECONDS)
        api.delete(LLMSERVICES, NAMESPACE, "web")
        eventually(lambda: api.read(SCALED_OBJECTS, NAMESPACE, "web") is None, SYNC_SECONDS)


def test_with_keda_a_suspended_service_stays_at_zero_and_resumes_with_its_replicas(
    api: Api, tmp_path: Path
) -> None:
    def replicas() -> int:
        found: int = api.get(DEPLOYMENTS, NAMESPACE, "idle")["spec"]["replicas"]
        return found

    def scaled_object() -> str:
        live = api.get(SCALED_OBJECTS, NAMESPACE, "idle")
        assert "deletionTimestamp" not in live["metadata"]
        uid: str = live["metadata"]["uid"]
        return uid

    def suspend(wanted: bool) -> None:
        api.patch(LLMSERVICES, NAMESPACE, "idle", {"spec": {"suspend": wanted}})

    with report_source() as source, operator(tmp_path / "log", source.url) as process:
        process.until_leading()
        source.say(NAMESPACE, "idle", demand_percent=160.0, external_metrics=FOREIGN)
        api.create(LLMSERVICES, make_service("idle", NAMESPACE, autoscaling={"maxReplicas": 4}))
        until_replicas(api, "idle", 2)
        until_settled(process)
        with writes_nothing(process):
            holds_for(20, lambda: replicas() == 2)

        # The operator restores a deleted ScaledObject.
        first = scaled_object()
        api.delete(SCALED_OBJECTS, NAMESPACE, "idle")
        eventually(lambda: scaled_object() != first, SYNC_SECONDS)
        status = api.get(LLMSERVICES, NAMESPACE, "idle")["status"]["autoscaling"]
        assert (status["provider"], status["desiredReplicas"]) == ("KEDA", 2)

        suspend(True)
        eventually(lambda: api.read(SCALED_OBJECTS, NAMESPACE, "idle") is None, SYNC_SECONDS)
        until_replicas(api, "idle", 0)
        holds_for(40, lambda: replicas() == 0)

        suspend(False)
        eventually(scaled_object, SYNC_SECONDS)
        until_replicas(api, "idle", 2)
        holds_for(20, lambda: replicas() == 2)
        api.delete(LLMSERVICES, NAMESPACE, "idle")


def test_without_rights_nothing_else_scales_until_the_scaled_object_is_deleted(
    api: Api, tmp_path: Path
) -> None:
    def active() -> dict[str, str]:
        found: dict[str, str] = condition(
            api.get(LLMSERVICES, NAMESPACE, "left"), "AutoscalingActive"
        )
        return found

    with report_source() as source:
        source.say(NAMESPACE, "left", demand_percent=60.0, external_metrics=FOREIGN)
        with operator(tmp_path / "before", source.url) as process:
            process.until_leading()
            api.create(LLMSERVICES, make_service("left", NAMESPACE, autoscaling={"maxReplicas": 4}))
            eventually(lambda: api.read(AUTOSCALERS, NAMESPACE, "keda-hpa-left"), SYNC_SECONDS)
        with operator(tmp_path / "after", source.url, keda="false") as process:
            process.until_leading()
            eventually(lambda: active()["reason"] == "KEDAMissing", SYNC_SECONDS)
            assert "kubectl delete scaledobject left" in active()["message"]

            api.delete(SCALED_OBJECTS, NAMESPACE, "left")
            eventually(lambda: active()["reason"] == "FollowingLoad", SYNC_SECONDS)
            assert "the operator itself scales instead" in active()["message"]
            api.delete(LLMSERVICES, NAMESPACE, "left")


def test_the_metrics_server_leaves_kedas_api_alone_and_keda_reads_its_numbers(
    api: Api, tmp_path: Path
) -> None:
    before = kubectl("get", "apiservice", API_SERVICE, "-o", "jsonpath={.spec}")
    metrics_server = MetricsServerProcess(tmp_path / "metrics", NAMESPACE)
    with Engine(rate=60.0).listening(), metrics_server as server:
        url = f"http://127.0.0.1:{server.scaling_port}"
        with operator(tmp_path / "log", url) as process:
            process.until_leading()
            service = make_service("busy", NAMESPACE, autoscaling={"maxReplicas": 3})
            api.create(LLMSERVICES, service)
            make_pod(api, NAMESPACE, "busy", "busy-0", "127.0.0.1")

            def told() -> str:
                status = api.get(LLMSERVICES, NAMESPACE, "busy")
                message: str = condition(status, "AutoscalingActive")["message"]
                assert OWNER in message, message
                return message

            assert "KEDA scales instead" in eventually(told, STEADY_SECONDS)
            eventually(
                lambda: api.get(DEPLOYMENTS, NAMESPACE, "busy")["spec"]["replicas"] > 1,
                STEADY_SECONDS,
                "KEDA has scaled by the metrics server's number",
            )
    assert kubectl("get", "apiservice", API_SERVICE, "-o", "jsonpath={.spec}") == before
    api.delete(LLMSERVICES, NAMESPACE, "busy")
    api.delete(PODS, NAMESPACE, "busy-0")
