"""Client of the metrics server: reads load reports. No report is None, never zero."""

from __future__ import annotations

import logging

import aiohttp
from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api.load_report import LoadReport

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 3.0
"""A pass must not wait for a metrics server that hangs; the next pass asks again."""


class LoadReportClient:
    """Reads the report of one service. Open it once and close it at the end."""

    def __init__(self, url: str | None, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """`url` is the server's address without a path; None means that there is none."""
        self._url = url and url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, namespace: str, name: str) -> LoadReport | None:
        """Return the report of a service; None without an answer, which is logged."""
        if not self._url:
            return None
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.get(
                f"{self._url}{names.load_report_path(namespace, name)}", allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    return None
                return LoadReport.model_validate_json(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            logger.warning("no load report: %s", str(error) or type(error).__name__)
            return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
