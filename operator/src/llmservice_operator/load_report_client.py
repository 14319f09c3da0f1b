"""Client of the metrics server: polls the load reports of all services in the background.

A pass reads the result of the last poll and never waits for the metrics server, so a stalled
metrics server delays nothing. A missing report is None, and is never treated as zero load.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api.load_report import LOAD_REPORT, LoadReport

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 5.0
"""Time in seconds between two polls, equal to the period of the metrics server's scrapes."""
TIMEOUT_SECONDS: Final = 3.0
"""Longest time in seconds that one poll may take, including the connection."""
KEPT_SECONDS: Final = 3 * POLL_SECONDS
"""Time in seconds for which the last response is used, so that one failed poll changes nothing."""
LONGEST_ANSWER_BYTES: Final = 64 * 2**20
"""Longest response that is read, in bytes. The reports of ten thousand services with a few replicas
each are shorter."""
LONGEST_REFUSAL_BYTES: Final = 500
"""Longest part of a refusal that is read, in bytes."""


class LoadReportClient:
    """Keeps the newest load report of every service. `run` polls for the reports."""

    def __init__(
        self,
        url: str | None,
        on_news: Callable[[tuple[str, str]], None] = lambda _: None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        longest_bytes: int = LONGEST_ANSWER_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`url` is the metrics server's address without a path, or None if there is no metrics
        server. `headers` returns the headers of a request, with the token of this process.

        `on_news` is called for every service whose report arrives after a pass has found none, and
        for every service that has no report any more. Its argument is the namespace and name of the
        service.
        """
        self.polled = asyncio.Event()
        """Set once the first poll has ended, even if it failed. Without a metrics server, it is set
        from the start."""
        self._url = url and url.rstrip("/")
        self._on_news = on_news
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._longest_bytes = longest_bytes
        self._monotonic = monotonic
        self._headers = headers
        self._answer: Mapping[str, Any] = {}
        """The last response, which contains the reports by NAMESPACE/NAME."""
        self._answered_at = 0.0
        self._parsed: dict[str, LoadReport | None] = {}
        """Parsed reports of the last response. A report is parsed when a pass first reads it."""
        self._missed: set[tuple[str, str]] = set()
        """Services for which a pass has found no report since the last response."""
        self._is_answering = True
        if not self._url:
            self.polled.set()

    def read(self, namespace: str, name: str) -> LoadReport | None:
        """Return the newest report of a service, or None if there is no recent one."""
        report = None
        if self._monotonic() - self._answered_at <= KEPT_SECONDS:
            key = f"{namespace}/{name}"
            if key not in self._parsed:
                self._parsed[key] = self._parse(key)
            report = self._parsed[key]
        if report is None and self._url:
            self._missed.add((namespace, name))
        return report

    async def run(self) -> None:
        """Poll until cancelled. Without a metrics server, return immediately."""
        if not self._url:
            return
        async with aiohttp.ClientSession(timeout=self._timeout) as session:
            while True:
                await self.poll(session)
                await asyncio.sleep(POLL_SECONDS)

    async def poll(self, session: aiohttp.ClientSession) -> None:
        """Request the reports of all services once.

        If the request fails, the last reports stay in use until they are KEPT_SECONDS old.
        """
        url = f"{self._url}{names.LOAD_REPORTS_PATH}"
        try:
            async with asyncio.timeout(self._timeout.total):
                answer = await self._ask(session, url)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            # Only the first failed poll of an outage is logged as a warning.
            level = logging.WARNING if self._is_answering else logging.DEBUG
            logger.log(level, "no load reports from %s: %s", url, str(error) or "no answer in time")
            self._is_answering = False
            if self._monotonic() - self._answered_at > KEPT_SECONDS:
                self._replace({})
        else:
            if not self._is_answering:
                logger.info("%s answers again", url)
            self._is_answering = True
            self._replace(answer)
            self._answered_at = self._monotonic()
            missed, self._missed = self._missed, set()
            for namespace, name in missed:
                if f"{namespace}/{name}" in answer:
                    self._on_news((namespace, name))
        self.polled.set()

    def _replace(self, answer: Mapping[str, Any]) -> None:
        before, self._answer, self._parsed = self._answer, answer, {}
        for key in before.keys() - answer.keys():
            self._on_news(names.key_of(key))

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> Mapping[str, Any]:
        """Return the reports in the response.

        Raises ClientError if the request fails, ValueError for a response without reports, and
        RecursionError for a response that is nested too deeply.
        """
        async with session.get(url, headers=self._headers(), allow_redirects=False) as answer:
            if answer.status != 200:
                said = (await answer.content.read(LONGEST_REFUSAL_BYTES)).decode(errors="replace")
                raise ValueError(f"the answer has status {answer.status}: {said}")
            text = bytearray()
            async for chunk in answer.content.iter_any():
                text += chunk
                if len(text) > self._longest_bytes:
                    raise ValueError(f"the answer has more than {self._longest_bytes} bytes")
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("the answer is no JSON object")
        return found

    def _parse(self, key: str) -> LoadReport | None:
        """Return one report; None if it is missing or invalid.

        An invalid report does not affect the other reports.
        """
        found = self._answer.get(key)
        if found is None:
            return None
        try:
            return LOAD_REPORT.validate_python(found)
        except ValidationError as error:
            logger.warning("the load report of %s makes no sense: %s", key, error)
            return None
