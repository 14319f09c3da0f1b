"""Tests that docs/metrics.md has every metric of operator and metrics server, and no other."""

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from llmservice_operator.api.load_report import ExternalMetrics, LoadReport, ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.external_api import availability
from llmservice_operator.metrics_server.gauges import MetricsServerMetrics
from llmservice_operator.metrics_server.registration import Registration
from llmservice_operator.metrics_server.secure_server import SecureServer
from llmservice_operator.telemetry import Metrics, ProcessMetrics
from operator_support.services import a_body
from shared_support.metric_table import differences, tables

BOTH = "Operator and metrics server"
KEY = ("ml", "qwen")


class IdleQueue:
    def __len__(self) -> int:
        return 0

    def busy(self) -> int:
        return 0

    def unfinished_seconds(self) -> float:
        return 0.0

    def longest_running_seconds(self) -> float:
        return 0.0


def use_everything(metrics: ProcessMetrics) -> None:
    """Give every metric that both processes have a value."""
    metrics.request_finished("GET", "https://10.0.0.1", "200", 0.1)
    metrics.watch_event("pods")
    metrics.watches_restarted()
    metrics.read_cache("pods", lambda: 1, lambda: 0)
    metrics.cache_diverged("pods")
    metrics.loop_lagged(0.1)


def a_spec() -> Any:
    spec = {
        "accelerator": {"count": 2},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 5},
        "slo": {"ttftMilliseconds": 700, "objectivePercent": 90},
    }
    return LLMService.parse(a_body(spec)).spec


STATUS = {
    "conditions": [{"type": "Ready", "status": "False", "reason": "LoadingModel"}],
    "replicas": 3,
    "readyReplicas": 1,
    "updatedReplicas": 3,
    "ready": "1/4",
    "gpus": 8,
    "cost": {"perGpuHour": "2", "perHour": "16"},
    "engine": {"image": "server:1", "version": "0.33.0"},
}


async def test_the_operator_has_the_metrics_of_the_page_and_no_others() -> None:
    metrics = Metrics()
    use_everything(metrics)
    metrics.added()
    metrics.started(0.1)
    metrics.retried()
    for result in ("success", "error", "timeout"):
        metrics.finished(0.1, result)
    metrics.read_queue(IdleQueue(), workers=1)
    metrics.read_leadership("lease", lambda: True)
    metrics.applied("services", "created")
    metrics.drift_corrected("services")
    metrics.terminal_error()
    metrics.service_seen(*KEY, STATUS, a_spec())

    assert differences((await metrics.render()).decode(), "Operator", BOTH) == []


class Secure:
    expires_at = datetime(2030, 1, 1, tzinfo=UTC)


class Registered:
    state = ExternalMetrics(is_served=False, owner="keda/metrics", message="")
    is_available: bool | None = False


def metrics_of_a_server(registration: Registered) -> MetricsServerMetrics:
    replica = ReplicaLoad(
        pod="a",
        is_ready=True,
        utilization_percent=1.0,
        gpu_duty_cycle_percent=2.0,
        kv_cache_percent=3.0,
    )
    report = LoadReport(
        at=1000.0,
        demand_percent=170.0,
        target_percent=85.0,
        message="",
        cold_start_seconds=60.0,
        scale_down_window_seconds=90.0,
        replicas=(replica,),
    )
    metrics = MetricsServerMetrics()
    use_everything(metrics)
    metrics.read_reports(lambda: {KEY: report})
    metrics.read_external(cast(SecureServer, Secure()), cast(Registration, registration))
    metrics.read_shares(lambda: 4, lambda: (25, 26))
    metrics.round_ended(1.0)
    metrics.scraped(3, 1)
    return metrics


async def test_the_metrics_server_has_the_metrics_of_the_page_and_no_others() -> None:
    text = (await metrics_of_a_server(Registered()).render()).decode()

    headings = ("Metrics server", "External metrics of a metrics server", BOTH)
    assert differences(text, *headings) == []
    assert 'scrapes_total{result="answered"} 3.0' in text
    assert "metrics_server_members 4.0" in text
    assert 'metrics_server_services{role="learner"} 25.0' in text
    assert 'metrics_server_services{role="follower"} 26.0' in text
    assert 'scrapes_total{result="failed"} 1.0' in text
    assert 'api_service_other_owner{owner="keda/metrics"} 1.0' in text
    assert "api_service_available 0.0" in text
    assert "certificate_expiry_timestamp_seconds 1.893456e+09" in text


async def test_what_the_metrics_server_does_not_know_has_no_sample() -> None:
    registration = Registered()
    registration.state = ExternalMetrics(is_served=True, message="")
    registration.is_available = None
    lines = (await metrics_of_a_server(registration).render()).decode().splitlines()

    prefix = "llmservice_metrics_server_api_service"
    found = [line for line in lines if line.startswith(prefix)]
    assert found == [f"{prefix}_owned 1.0"]


async def test_a_service_shows_its_bounds_gpus_engine_and_slo() -> None:
    metrics = Metrics()
    metrics.service_seen(*KEY, STATUS, a_spec())
    # A pass that cannot read the spec reports only the failure.
    metrics.service_seen(*KEY, STATUS)
    text = (await metrics.render()).decode()

    labels = 'llmservice="qwen",namespace="ml"'
    for name, value in (
        ("replicas", 3),
        ("replicas_ready", 1),
        ("replicas_updated", 3),
        ("replicas_desired", 4),
        ("replicas_min", 2),
        ("replicas_max", 5),
        ("gpus", 6),
        ("gpus_desired", 8),
        ("gpu_dollars_per_hour", 2),
    ):
        assert f"llmservice_{name}{{{labels}}} {value}.0" in text
    assert f"llmservice_slo_objective_ratio{{{labels}}} 0.9" in text
    assert f'llmservice_slo_limit_seconds{{{labels},slo="ttft"}} 0.7' in text
    assert 'slo="itl"' not in text
    assert 'engine_version="0.33.0",image="server:1"' in text


async def test_a_service_whose_spec_was_never_read_shows_only_its_status() -> None:
    metrics = Metrics()
    metrics.service_seen(*KEY, {"conditions": []})
    lines = (await metrics.render()).decode().splitlines()

    names = {line.partition("{")[0] for line in lines if "qwen" in line}
    assert names == {
        f"llmservice_{name}" for name in ("replicas", "replicas_ready", "replicas_updated")
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"conditions": [{"type": "Available", "status": "True"}]}, True),
        ({"conditions": [{"type": "Available", "status": "False"}]}, False),
        ({"conditions": [{"type": "Available", "status": "Unknown"}]}, None),
        ({"conditions": [{"type": "Other", "status": "True"}]}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_availability_is_that_of_the_api_servers_condition(
    status: Any, expected: bool | None
) -> None:
    assert availability({"status": status}) is expected


def test_every_name_of_the_page_has_one_meaning() -> None:
    names = [row.name for rows in tables().values() for row in rows if row.name[-1] != "*"]
    assert len(names) == len(set(names))


async def test_a_metric_that_one_side_lacks_is_reported() -> None:
    text = (await asyncio.wait_for(Metrics().render(), 60)).decode()
    text += "# TYPE surplus gauge\nsurplus 1\n"

    found = differences(text, "Operator", BOTH, "Metrics server")
    assert "surplus is not in docs/metrics.md" in found
    assert "llm_capacity_factor is not exposed" in found
