"""The metrics of a router pod: those of the supervisor, Envoy, the picker and the forwarder."""

import logging
from collections.abc import Iterator, Sequence
from typing import Final

import aiohttp
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmservice_operator.router.envoy_admin import EnvoyAdmin, EnvoyAway
from llmservice_operator.router.forwarder import METRICS_SOCKET
from llmservice_operator.router.picker_status import read_status
from llmservice_operator.router.processes import ChildProcess
from llmservice_operator.router.replica_updates import ReplicaUpdates
from llmservice_operator.router.replicas import Replicas
from llmservice_operator.router_settings import RouterSettings

logger = logging.getLogger(__name__)

FORWARDER_SECONDS: Final = 1.0
"""Longest wait, in seconds, for the metrics of the forwarder."""

ENVOY_METRICS: Final = (
    r"^(http\.clients\.downstream_(rq|cx)_(active|total|[2-5]xx)$"
    r"|cluster\.[a-z_]+\.(membership_(healthy|total)|upstream_rq_(total|active|retry|5xx)"
    r"|health_check\.failure|outlier_detection\.ejections_enforced_total)$"
    r"|http\.[a-z]+\.ext_proc\."
    r"|server\.memory_)"
)
"""Pattern of the names that the served metrics have in Envoy."""


class PodMetrics:
    """All metrics of the pod as one text. A process that does not answer is left out."""

    def __init__(
        self,
        settings: RouterSettings,
        admin: EnvoyAdmin,
        replicas: Replicas,
        updates: ReplicaUpdates,
        processes: Sequence[ChildProcess],
    ) -> None:
        self._admin = admin
        self._folder = settings.run_directory
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_PodCollector(settings, replicas, updates, processes))

    async def render(self) -> bytes:
        return b"".join(
            (
                generate_latest(self._registry),
                await self._of_envoy(),
                (await read_status(self._folder)).metrics.encode(),
                await self._of_forwarder(),
            )
        )

    async def _of_envoy(self) -> bytes:
        try:
            return (await self._admin.metrics(ENVOY_METRICS)).encode()
        except EnvoyAway:
            return b""

    async def _of_forwarder(self) -> bytes:
        timeout = aiohttp.ClientTimeout(total=FORWARDER_SECONDS)
        connector = aiohttp.UnixConnector(str(self._folder / METRICS_SOCKET))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get("http://forwarder/metrics") as answer,
            ):
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return b""


class _PodCollector(Collector):
    """Reads the values when they are scraped."""

    def __init__(
        self,
        settings: RouterSettings,
        replicas: Replicas,
        updates: ReplicaUpdates,
        processes: Sequence[ChildProcess],
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._updates = updates
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        views = self._replicas.views()
        draining = sum(each.is_draining for each in views)
        replicas = GaugeMetricFamily(
            "llmservice_router_replicas", "Confirmed replicas by state", labels=("state",)
        )
        replicas.add_metric(("ready",), len(views) - draining)
        replicas.add_metric(("draining",), draining)
        yield replicas
        yield GaugeMetricFamily(
            "llmservice_router_addresses",
            "Addresses that are asked whether they belong to a replica",
            self._replicas.candidates,
        )
        lists = CounterMetricFamily(
            "llmservice_router_replica_lists",
            "Lists of replicas that were sent to this pod, by result",
            labels=("result",),
        )
        lists.add_metric(("accepted",), self._updates.accepted)
        lists.add_metric(("refused",), self._updates.refused)
        yield lists
        yield GaugeMetricFamily(
            "llmservice_router_client_limits",
            "1 if API keys have limits, which the picker applies; otherwise 0",
            self._settings.client_limits is not None,
        )
        yield CounterMetricFamily(
            "llmservice_router_ejections",
            "Replicas that lost their requests because they did not confirm their identity",
            value=self._replicas.ejections,
        )
        restarts = CounterMetricFamily(
            "llmservice_router_process_restarts",
            "Starts of a process of the pod after the first one",
            labels=("process",),
        )
        for process in self._processes:
            restarts.add_metric((process.name,), process.restarts)
        yield restarts
