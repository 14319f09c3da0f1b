"""KEDA itself beside the operator: it owns the metrics API, and it scales by what we tell it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_operator.api.scaling_report import ExternalMetrics
from llmservice_operator.cluster import DEPLOYMENTS, LLMSERVICES, PODS
from llmservice_operator.cluster.kinds import SCALED_OBJECTS
from metrics_support import Engine, MetricsServerProcess, make_pod
from operator_support import (
    REPOSITORY,
    Api,
    OperatorProcess,
    condition,
    eventually,
    holds_for,
    kubectl,
    make_service,
)
from report_support import report_source

OWNER = "keda/keda-adapter"
API_SERVICE = "v1beta1.external.metrics.k8s.io"
NAMESPACE = "with-keda"
SYNC_SECONDS = 60.0
"""KEDA asks every 5 s, the HPA controller looks every 15 s, and its first look may find nothing."""
STEADY_SECONDS = 150.0
"""The load is known after a minute of it."""


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    """The API server of a cluster that KEDA runs in, with our resource and a namespace."""
    found = Api()
    found.apply_file(REPOSITORY / "crds" / "llmservice.yaml")
    # kubectl gives up at once where there is no condition yet.
    eventually(
        lambda: kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    )
    eventually(lambda: found.request("GET", LLMSERVICES.path("default")))
    found.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    yield found
    found.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")


def operator(log: Path, url: str) -> OperatorProcess:
    settings = {"WATCH_NAMESPACES": NAMESPACE, "METRICS_SERVER_URL": url, "KEDA": "true"}
    return OperatorProcess(log, NAMESPACE, **settings)


def until_replicas(api: Api, name: str, number: int, seconds: float = SYNC_SECONDS) -> None:
    def replicas() -> int:
        found: int = api.get(DEPLOYMENTS, NAMESPACE, name)["spec"]["replicas"]
        return found

    eventually(lambda: replicas() == number, seconds, f"{number} replicas of {name}")


def test_a_service_follows_its_load_up_and_down_through_keda(api: Api, tmp_path: Path) -> None:
    foreign = ExternalMetrics(is_served=False, owner=OWNER, message="It belongs to KEDA.")
    with report_source() as source, operator(tmp_path / "log", source.url) as process:
        process.until_leading()
        told = {"external_metrics": foreign, "scale_down_window_seconds": 0.0}
        source.say(NAMESPACE, "web", demand_percent=60.0, **told)
        service = make_service("web", NAMESPACE, autoscaling={"maxReplicas": 4})
        api.create(LLMSERVICES, service)
        eventually(lambda: api.get(SCALED_OBJECTS, NAMESPACE, "web"), SYNC_SECONDS)
        until_replicas(api, "web", 1)

        source.say(NAMESPACE, "web", demand_percent=160.0, **told)
        until_replicas(api, "web", 2)

        # Unknown is never zero: KEDA falls back on what is there.
        source.be_silent(NAMESPACE, "web")
        holds_for(40, lambda: api.get(DEPLOYMENTS, NAMESPACE, "web")["spec"]["replicas"] == 2)

        source.say(NAMESPACE, "web", demand_percent=60.0, **told)
        until_replicas(api, "web", 1, 2 * SYNC_SECONDS)
        api.delete(LLMSERVICES, NAMESPACE, "web")
        eventually(lambda: api.read(SCALED_OBJECTS, NAMESPACE, "web") is None, SYNC_SECONDS)


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
