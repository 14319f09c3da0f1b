"""Reads the reports of replicas, router pods and the metrics server through port-forwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LOAD_REPORT, LoadReport
from llmservice_operator.engine_metrics import EngineMetrics, NoReport
from llmservice_operator.kubectl_plugin.forwards import Forwards
from llmservice_operator.scaling.signals import Snapshot

TIMEOUT_SECONDS: Final = 5.0
LONGEST_ANSWER: Final = 4 * 2**20
_PICKS: Final = "llmservice_router_picks_total"
_HELD: Final = (
    "llmservice_router_held_requests",
    "llmservice_router_forwarder_waiting_requests",
)


@dataclass(frozen=True)
class RouterCounts:
    """The counters of a router pod."""

    picks: Mapping[str, float]
    """Picks since the start, by their reason."""
    held: float
    """Requests that wait for a replica now."""


class PodReports:
    """Client of all pods with a port-forward. Use it as an asynchronous context manager."""

    def __init__(self, forwards: Forwards) -> None:
        self._forwards = forwards

    async def __aenter__(self) -> Self:
        self._engines = EngineMetrics(timeout_seconds=TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self._engines.close(), self._session.close())

    async def replica(self, pod: str) -> tuple[str, Snapshot] | None:
        """Return the phase and the counters of a replica; None if it does not report."""
        port = self._forwards.port(pod)
        if port is None:
            return None
        try:
            report = await self._engines.report("127.0.0.1", port)
        except NoReport:
            self._forwards.drop(pod)
            return None
        return report.phase, report.snapshot(asyncio.get_running_loop().time())

    async def router(self, pod: str) -> RouterCounts | None:
        """Return the counters of a router pod; None if it does not report."""
        text = await self._get(pod, "/metrics")
        if text is None:
            return None
        try:
            samples = [
                sample
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == _PICKS or sample.name in _HELD
            ]
            picks = {each.labels["reason"]: each.value for each in samples if each.name == _PICKS}
        except (ValueError, KeyError):
            return None
        return RouterCounts(picks, sum(each.value for each in samples if each.name in _HELD))

    async def load_report(
        self,
        servers: Sequence[Manifest],
        namespace: str,
        name: str,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> LoadReport | None:
        """Return the load report of a service; None if no metrics server answers."""
        for server in servers:
            path = names.load_report_path(namespace, name)
            text = await self._get(server["metadata"]["name"], path, headers)
            if text is not None:
                with suppress(ValidationError):
                    return LOAD_REPORT.validate_json(text)
        return None

    async def _get(
        self, pod: str, path: str, headers: Mapping[str, str] = MappingProxyType({})
    ) -> str | None:
        """Return the body of a response with status 200; None without one."""
        port = self._forwards.port(pod)
        if port is None:
            return None
        url = f"http://127.0.0.1:{port}{path}"
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                body = await answer.content.read(LONGEST_ANSWER)
                while not answer.content.at_eof() and len(body) < LONGEST_ANSWER:
                    body += await answer.content.read(LONGEST_ANSWER)
                return body.decode(errors="replace") if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError):
            self._forwards.drop(pod)
            return None
