"""The operator's client of the metrics server, against a real HTTP server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.load_report_client import LoadReportClient
from operator_support.processes import free_port

REPORT = LoadReport(
    at=1000.0,
    demand_percent=170.0,
    target_percent=85.0,
    message="The load is 170 % of one replica.",
    cold_start_seconds=60.0,
    scale_down_window_seconds=90.0,
)


@asynccontextmanager
async def reading_from(
    answer: Callable[[web.Request], Awaitable[web.Response]], timeout: float = 5
) -> AsyncIterator[LoadReportClient]:
    app = web.Application()
    app.router.add_get("/v1/scaling/{namespace}/{name}", answer)
    async with TestServer(app) as server:
        reports = LoadReportClient(str(server.make_url("/")), timeout)
        try:
            yield reports
        finally:
            await reports.close()


async def test_reads_the_report_of_one_service() -> None:
    async def answer(request: web.Request) -> web.Response:
        assert request.match_info == {"namespace": "ml", "name": "qwen"}
        return web.json_response(text=REPORT.model_dump_json(by_alias=True))

    async with reading_from(answer) as reports:
        assert await reports.read("ml", "qwen") == REPORT
        assert await reports.read("ml", "qwen") == REPORT


@pytest.mark.parametrize(
    ("status", "body"), [(404, "{}"), (503, "{}"), (200, "{}"), (200, "no JSON"), (302, "")]
)
async def test_an_answer_that_is_no_report_is_unknown(status: int, body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"Location": "/v1/scaling/ml/other"})

    async with reading_from(answer) as reports:
        assert await reports.read("ml", "qwen") is None


async def test_a_metrics_server_that_hangs_is_given_up() -> None:
    async def answer(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with reading_from(answer, timeout=0.1) as reports:
        assert await reports.read("ml", "qwen") is None


async def test_no_metrics_server_is_unknown() -> None:
    reports = LoadReportClient(f"http://127.0.0.1:{free_port()}")
    assert await reports.read("ml", "qwen") is None
    await reports.close()
    assert await LoadReportClient(None).read("ml", "qwen") is None


def test_a_field_of_a_newer_metrics_server_is_ignored() -> None:
    text = REPORT.model_dump_json(by_alias=True).replace("{", '{"mood": "good", ', 1)

    assert LoadReport.model_validate_json(text) == REPORT
