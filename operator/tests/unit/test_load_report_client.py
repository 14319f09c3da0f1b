"""Tests the operator's client of the metrics server with a real HTTP server."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from llmservice_operator.api.load_report import LOAD_REPORT, LoadReport
from llmservice_operator.load_report_client import KEPT_SECONDS, LoadReportClient
from operator_support.processes import free_port
from shared_support.waiting import PATIENCE, eventually_in_loop

REPORT = LoadReport(
    at=1000.0,
    demand_percent=170.0,
    target_percent=85.0,
    message="The load is 170 % of one replica.",
    cold_start_seconds=60.0,
    scale_down_window_seconds=90.0,
)
TEXT = LOAD_REPORT.dump_json(REPORT, by_alias=True).decode()
LONGEST = 100_000

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Polled:
    """A client whose polls and clock a test controls."""

    def __init__(self, url: str, session: ClientSession, timeout: float) -> None:
        self.seconds = 1_000_000.0
        self.news: list[tuple[str, str]] = []
        self.client = LoadReportClient(
            url,
            self.news.append,
            timeout_seconds=timeout,
            longest_bytes=LONGEST,
            monotonic=lambda: self.seconds,
        )
        self._session = session

    async def poll(self) -> None:
        await self.client.poll(self._session)


@asynccontextmanager
async def polling(answer: Answer, timeout: float = 5) -> AsyncIterator[Polled]:
    app = web.Application()
    app.router.add_get("/v1/scaling", answer)
    async with TestServer(app) as server, ClientSession() as session:
        yield Polled(str(server.make_url("/")), session, timeout)


def reports(**texts: str) -> str:
    """Return a response body with the reports of these services in the namespace ml."""
    return "{" + ", ".join(f'"ml/{name}": {text}' for name, text in texts.items()) + "}"


async def test_one_request_reads_the_reports_of_all_services() -> None:
    requests = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        return web.json_response(text=reports(qwen=TEXT, llama=TEXT))

    async with polling(answer) as polled:
        await polled.poll()
        assert polled.client.read("ml", "qwen") == REPORT
        assert polled.client.read("ml", "llama") == REPORT
        assert polled.client.read("ml", "other") is None
        assert requests == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, "{}"),
        (503, reports(qwen=TEXT)),
        (200, "no JSON"),
        (200, "[1]"),
        (200, "[" * 50_000),
        (200, reports(qwen=TEXT, llama=json.dumps("x" * LONGEST))),
        (302, ""),
    ],
    ids=["unknown path", "error", "no JSON", "a list", "too deep", "too long", "redirected"],
)
async def test_a_response_without_reports_is_unknown(status: int, body: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"Location": "/v1/scaling/ml/other"})

    async with polling(answer) as polled:
        await polled.poll()
        assert polled.client.read("ml", "qwen") is None
        assert polled.client.polled.is_set()


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "null", "7"),
        *(TEXT.replace("170.0", number, 1) for number in ('"much"', "NaN", "1e999")),
    ],
)
async def test_a_malformed_report_hides_no_other_report(text: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(text=reports(broken=text, qwen=TEXT))

    async with polling(answer) as polled:
        await polled.poll()
        assert polled.client.read("ml", "broken") is None
        assert polled.client.read("ml", "qwen") == REPORT


async def test_reports_are_read_at_once_while_the_metrics_server_hangs() -> None:
    hangs = False

    async def answer(_: web.Request) -> web.Response:
        if hangs:
            await asyncio.Event().wait()
        return web.json_response(text=reports(qwen=TEXT))

    async with polling(answer, timeout=0.2) as polled, asyncio.timeout(PATIENCE):
        # On a busy machine, even the answer of a server that does not hang may come too late.
        while polled.client.read("ml", "qwen") is None:
            await polled.poll()
        hangs = True
        poll = asyncio.create_task(polled.poll())
        assert polled.client.read("ml", "qwen") == REPORT
        assert not poll.done()
        await poll
        assert polled.client.read("ml", "qwen") == REPORT
        polled.seconds += KEPT_SECONDS + 1
        assert polled.client.read("ml", "qwen") is None


async def test_a_service_without_a_report_is_reconciled_as_soon_as_it_has_one() -> None:
    known: dict[str, str] = {}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(text=reports(**known))

    async with polling(answer) as polled:
        await polled.poll()
        assert polled.client.read("ml", "qwen") is None
        await polled.poll()
        assert polled.news == []
        assert polled.client.read("ml", "qwen") is None
        known["qwen"] = known["llama"] = TEXT
        await polled.poll()
        assert polled.news == [("ml", "qwen")]
        polled.client.read("ml", "qwen")
        await polled.poll()
        assert polled.news == [("ml", "qwen")]


async def test_a_service_that_has_no_report_any_more_is_reconciled_once() -> None:
    known = {"qwen": TEXT, "llama": TEXT}

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(text=reports(**known), status=200 if known else 503)

    async with polling(answer) as polled:
        await polled.poll()
        del known["llama"]
        await polled.poll()
        assert polled.news == [("ml", "llama")]
        known.clear()
        await polled.poll()
        assert polled.news == [("ml", "llama")], "the last report is still in use"
        polled.seconds += KEPT_SECONDS + 1
        await polled.poll()
        await polled.poll()
        assert polled.news == [("ml", "llama"), ("ml", "qwen")]


async def test_a_poll_of_a_metrics_server_that_sends_byte_after_byte_times_out() -> None:
    sent = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            sent.set()
            await asyncio.sleep(0.02)  # noqa: TID251 - a slow server is the point

    async with polling(answer, timeout=0.2) as polled, asyncio.timeout(PATIENCE):
        await polled.poll()
        assert sent.is_set()
        assert polled.client.read("ml", "qwen") is None


async def test_an_outage_is_logged_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    works = True

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(text=reports(qwen=TEXT), status=200 if works else 500)

    caplog.set_level("INFO")
    async with polling(answer) as polled:
        await polled.poll()
        works = False
        for _ in range(3):
            await polled.poll()
        works = True
        await polled.poll()
    said = [record.message for record in caplog.records if "aiohttp" not in record.name]
    assert [("no load reports" in each, "answers again" in each) for each in said] == [
        (True, False),
        (False, True),
    ]


async def test_without_an_answer_the_first_poll_ends_too() -> None:
    client = LoadReportClient(f"http://127.0.0.1:{free_port()}")
    assert not client.polled.is_set()
    polls = asyncio.create_task(client.run())
    await eventually_in_loop(client.polled.is_set)
    assert client.read("ml", "qwen") is None
    polls.cancel()
    await asyncio.gather(polls, return_exceptions=True)


async def test_without_a_metrics_server_nothing_is_polled_or_waited_for() -> None:
    client = LoadReportClient(None)
    await client.run()
    assert client.polled.is_set()
    assert client.read("ml", "qwen") is None


def test_a_field_of_a_newer_metrics_server_is_ignored() -> None:
    text = TEXT.replace("{", '{"mood": "good", ', 1)

    assert LOAD_REPORT.validate_json(text) == REPORT
