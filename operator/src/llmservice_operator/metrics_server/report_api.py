"""Serves the load reports as JSON: single reports for KEDA, and all reports for the operator and
the standby.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import TypeAdapter, ValidationError

from llmservice_operator import names
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.cluster import Key

logger = logging.getLogger(__name__)

WAIT_SECONDS = 0.7
"""Longest time in seconds that a standby waits for a running round. After that time, it gets the
reports of the previous round."""
LEADER_TIMEOUT_SECONDS = 1.0

_REPORTS = TypeAdapter(dict[str, LoadReport])
"""Reports by NAMESPACE/NAME."""


class Reporter(Protocol):
    """The reports of the last round, and of future rounds."""

    @property
    def reports(self) -> Mapping[Key, LoadReport]: ...

    async def reports_as_of(self, at: float) -> Mapping[Key, LoadReport]: ...


def create_report_app(reporter: Reporter, *middlewares: Middleware) -> web.Application:
    async def one(request: web.Request) -> web.Response:
        key = request.match_info["namespace"], request.match_info["name"]
        report = reporter.reports.get(key)
        if report is None:
            message = f"the metrics server knows no LLMService {key[0]}/{key[1]}"
            return web.json_response({"message": message}, status=404)
        return web.json_response(text=report.model_dump_json(by_alias=True))

    async def every(request: web.Request) -> web.Response:
        reports = reporter.reports
        if "at" in request.query:
            try:
                at = float(request.query["at"])
            except ValueError:
                message = (
                    "at must be a time in seconds since 1970: "
                    f"{names.LOAD_REPORTS_PATH}?at=1790000000"
                )
                return web.json_response({"message": message}, status=400)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    reports = await reporter.reports_as_of(at)
        found = {f"{namespace}/{name}": it for (namespace, name), it in reports.items()}
        body = _REPORTS.dump_json(found, by_alias=True)
        return web.Response(body=body, content_type="application/json")

    app = web.Application(middlewares=middlewares)
    app.router.add_get(names.LOAD_REPORTS_PATH, every)
    app.router.add_get(names.load_report_path("{namespace}", "{name}"), one)
    return app


class LeaderClient:
    """Reads the reports of the metrics server that holds the Lease."""

    def __init__(self, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        """`headers` returns the headers of a request, with the token of this process."""
        self._headers = headers
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=LEADER_TIMEOUT_SECONDS)
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, address: str, at: float) -> dict[Key, LoadReport]:
        """Return the leader's reports as of this moment, or older ones if the leader's round takes
        too long. The result is empty if the leader does not respond.
        """
        try:
            async with self._session.get(
                f"http://{address}{names.LOAD_REPORTS_PATH}",
                params={"at": str(at)},
                headers=self._headers(),
                allow_redirects=False,
            ) as answer:
                answer.raise_for_status()
                found = _REPORTS.validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            logger.warning("the leader at %s does not answer: %s", address, error)
            return {}
        return {_key(name): it for name, it in found.items()}


def _key(name: str) -> Key:
    namespace, _, service = name.partition("/")
    return namespace, service
