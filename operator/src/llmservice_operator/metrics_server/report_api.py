"""Serves the load reports as JSON: single reports for KEDA, and all reports for the operator and
the other metrics servers.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from llmservice_operator import names
from llmservice_operator.api.load_report import LOAD_REPORT, LOAD_REPORTS, LoadReport
from llmservice_operator.cluster import Key

WAIT_SECONDS = 0.7
"""Time in seconds that a request waits for a round unless it says how long. A metrics server of an
earlier release does not say it."""
LONGEST_WAIT_SECONDS = 60.0
REPORTS_PER_PART = 100


class Reporter(Protocol):
    """The reports of the last round, and of future rounds."""

    @property
    def reports(self) -> Mapping[Key, LoadReport]: ...

    async def reports_as_of(self, at: float) -> Mapping[Key, LoadReport]: ...

    def computed_for(self, learners: Collection[str]) -> Mapping[Key, LoadReport]: ...


def _parts(reports: Mapping[Key, LoadReport]) -> Iterator[bytes]:
    """Yield the JSON object of the reports by NAMESPACE/NAME in parts.

    As a whole, the reports of thousands of services take tens of MiB, and their serialization
    delays all other requests.
    """
    named = [(f"{namespace}/{name}", it) for (namespace, name), it in reports.items()]
    yield b"{"
    for start in range(0, len(named), REPORTS_PER_PART):
        part = dict(named[start : start + REPORTS_PER_PART])
        yield (b"," if start else b"") + LOAD_REPORTS.dump_json(part, by_alias=True)[1:-1]
    yield b"}"


def create_report_app(reporter: Reporter, *middlewares: Middleware) -> web.Application:
    async def one(request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        report = reporter.reports.get(key)
        if report is None:
            message = f"the metrics server knows no LLMService {key[0]}/{key[1]}"
            return web.json_response({"message": message}, status=404)
        body = LOAD_REPORT.dump_json(report, by_alias=True)
        return web.Response(body=body, content_type="application/json")

    async def every(request: web.Request) -> web.StreamResponse:
        reports = reporter.reports
        learners = request.query.getall("learner", [])
        if "at" in request.query:
            try:
                at = float(request.query["at"])
                wait = min(float(request.query.get("wait", WAIT_SECONDS)), LONGEST_WAIT_SECONDS)
            except ValueError:
                message = (
                    "at must be a time in seconds since 1970, and wait a number of seconds: "
                    f"{names.LOAD_REPORTS_PATH}?at=1790000000&wait=5"
                )
                return web.json_response({"message": message}, status=400)
            try:
                async with asyncio.timeout(wait):
                    reports = await reporter.reports_as_of(at)
            except TimeoutError:
                # Another metrics server has the reports of the previous round.
                reports = {} if learners else reporter.reports
            else:
                reports = reporter.computed_for(learners) if learners else reports
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        # A client that has gone gets no answer, and that is no fault.
        with suppress(ConnectionError):
            await answer.prepare(request)
            for part in _parts(reports):
                await answer.write(part)
        return answer

    app = web.Application(middlewares=middlewares)
    app.router.add_get(names.LOAD_REPORTS_PATH, every)
    app.router.add_get(names.load_report_path("{namespace}", "{name}"), one)
    return app
