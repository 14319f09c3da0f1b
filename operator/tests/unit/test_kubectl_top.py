"""Tests `kubectl llm top`: from the reports of pods to the tables."""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator.api.load_report import LOAD_REPORT
from llmservice_operator.kubectl_plugin.forwards import Forwards
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed
from llmservice_operator.kubectl_plugin.pod_reports import PodReports, RouterCounts
from llmservice_operator.kubectl_plugin.report_token import ReportToken
from llmservice_operator.kubectl_plugin.screen import console_for, show
from llmservice_operator.kubectl_plugin.top import Round, Top, top_of, top_screen
from llmservice_operator.names import load_report_path
from llmservice_operator.scaling.signals import Counters
from operator_support.replica_reports import REPORT
from operator_support.report import a_report
from operator_support.services import a_body

METRICS = """\
# TYPE llmservice_router_picks counter
llmservice_router_picks_total{reason="least_work"} 30.0
llmservice_router_picks_total{reason="held"} 2.0
# TYPE llmservice_router_held_requests gauge
llmservice_router_held_requests 3.0
# TYPE llmservice_router_forwarder_waiting_requests gauge
llmservice_router_forwarder_waiting_requests 1.0
"""

BUSY = replace(
    REPORT,
    running=3,
    waiting=2,
    kv_tokens=100_000.0,
    counters=Counters(generated_tokens=500.0, prompt_tokens_computed=1000.0),
)


def top(now: Round, before: Round, **loads: float | None) -> Top:
    service = a_body(status={"autoscaling": {"load": "60/85"}})
    return top_of(service, before, now, loads, ("LOAD is unknown: no rights.",))


def test_rates_are_differences_of_two_reports_and_unknown_values_stay_unknown() -> None:
    before = Round(10.0, {"a": ("ready", REPORT), "b": None}, {"r": RouterCounts({}, 0.0)})
    counts = RouterCounts({"least_work": 30.0, "held": 2.0}, 4.0)
    now = Round(12.0, {"a": ("ready", BUSY), "b": ("loading", REPORT), "c": None}, {"r": counts})
    found = top(now, before, a=70.0)
    first, second, third = found.replicas
    assert (first.load_percent, first.running, first.waiting, first.kv_percent) == (70, 3, 2, 25)
    assert (first.answer_tokens_per_second, first.prompt_tokens_per_second) == (250.0, 500.0)
    assert (second.phase, second.answer_tokens_per_second) == ("loading", None)
    assert (third.pod, third.phase, third.running) == ("c", None, None)
    (router,) = found.routers
    assert (router.picks_per_second, router.held) == (16.0, 4.0)
    assert router.picks == "held 1.0, least_work 15.0"


def test_a_process_that_began_again_counts_from_zero() -> None:
    again = replace(BUSY, started=11.0)
    found = top(Round(12.0, {"a": ("ready", again)}, {}), Round(10.0, {"a": ("ready", BUSY)}, {}))
    assert found.replicas[0].answer_tokens_per_second == 250.0


def test_the_tables_have_a_row_for_each_pod_and_a_total() -> None:
    before = Round(10.0, {"a": ("ready", REPORT), "b": None}, {"r": RouterCounts({}, 0.0)})
    counts = RouterCounts({"least_work": 30.0}, 4.0)
    now = Round(12.0, {"a": ("ready", BUSY), "b": None}, {"r": counts})
    file = io.StringIO()
    show(top_screen(top(now, before, a=70.0)), console_for(file))
    assert file.getvalue().splitlines() == [
        "qwen: 60/85 per replica (current/target)",
        "",
        "REPLICA   PHASE   LOAD   RUNNING   WAITING     KV   ANSWER TOK/S   PROMPT TOK/S",
        "a         ready   70 %         3         2   25 %          250.0          500.0",
        "b         -          -         -         -      -              -              -",
        "total     -          -         3         2      -          250.0          500.0",
        "",
        "ROUTER   HELD   PICKS/S   BY REASON",
        "r        4      15.0      least_work 15.0",
        "LOAD is unknown: no rights.",
    ]


class Ports(Forwards):
    """Port-forwards of which each leads to the same server."""

    def __init__(self, port: int) -> None:
        super().__init__(Kubectl())
        self._port = port
        self.dropped: list[str] = []

    def port(self, pod: str) -> int | None:
        return None if pod == "closed" else self._port

    def drop(self, pod: str) -> None:
        self.dropped.append(pod)


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    report = a_report(replicas=({"pod": "a", "isReady": True, "utilizationPercent": 70.0},))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    async def loads(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer token-1"
        body = LOAD_REPORT.dump_json(report, by_alias=True)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get(load_report_path("team", "qwen"), loads)
    async with TestServer(app) as server:
        assert server.port is not None
        yield Ports(server.port)


@dataclass(frozen=True)
class Tokens(Kubectl):
    """kubectl that makes tokens, or fails."""

    made: list[tuple[str, ...]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """Errors of the next calls."""

    def run(self, *arguments: str, limit: float = 0.0) -> str:
        self.made.append(arguments)
        if self.errors:
            raise KubectlFailed(self.errors.pop())
        return f"token-{len(self.made)}\n"


METRICS_SERVER: dict[str, Any] = {
    "metadata": {"name": "m", "namespace": "system"},
    "spec": {"serviceAccountName": "metrics-server"},
}


def test_a_token_for_the_metrics_servers_only_is_made_every_five_minutes() -> None:
    now, kubectl = [0.0], Tokens()
    token = ReportToken(kubectl, lambda: now[0])
    for now[0] in (0.0, 299.0):
        assert token.headers(METRICS_SERVER) == {"Authorization": "Bearer token-1"}
    assert kubectl.made == [
        (
            *("create", "token", "metrics-server", "--namespace", "system"),
            *("--audience", "llmservice-metrics-server", "--duration", "10m"),
        )
    ]
    now[0] = 300.0
    kubectl.errors.append("error: forbidden")
    assert token.headers(METRICS_SERVER) == {}
    assert token.problem == "there is no token for the metrics server: error: forbidden"
    now[0] = 600.0
    assert token.headers(METRICS_SERVER) == {"Authorization": "Bearer token-3"}
    assert token.problem is None


async def test_reports_that_cannot_be_understood_are_left_out() -> None:
    async def odd(_: web.Request) -> web.Response:
        return web.Response(text="llmservice_router_picks_total{ nonsense")

    app = web.Application()
    app.router.add_get("/metrics", odd)
    app.router.add_get(load_report_path("team", "qwen"), odd)
    async with TestServer(app) as server:
        assert server.port is not None
        async with PodReports(Ports(server.port)) as reports:
            assert await reports.router("r") is None
            pod: dict[str, Any] = {"metadata": {"name": "m"}}
            assert await reports.load_report([pod], "team", "qwen") is None


async def test_reports_are_read_and_the_forward_to_a_silent_pod_is_opened_again(
    ports: Ports,
) -> None:
    async with PodReports(ports) as reports:
        counts = await reports.router("r")
        assert counts == RouterCounts({"least_work": 30.0, "held": 2.0}, 4.0)
        server, headers = METRICS_SERVER, ReportToken(Tokens()).headers(METRICS_SERVER)
        report = await reports.load_report([server], "team", "qwen", headers)
        assert report is not None
        assert report.replicas[0].utilization_percent == 70.0
        assert await reports.load_report([server], "team", "other") is None
        assert await reports.load_report([], "team", "qwen") is None
        assert await reports.router("closed") is None
        assert ports.dropped == []
        # This server has no /autoscale, as a pod that was replaced by another program.
        assert await reports.replica("a") is None
        assert ports.dropped == ["a"]
