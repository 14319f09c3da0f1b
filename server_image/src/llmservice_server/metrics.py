"""Declares the server's own metric families. vLLM's families (`vllm:*`) are unchanged."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from llmservice_server.lifecycle import Lifecycle, Phase

_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bucket bounds in seconds, from a refused request to a long answer of a large model."""


class ServerMetrics:
    """Metrics of the gate and the lifecycle. A registry can have only one instance."""

    def __init__(self, registry: CollectorRegistry, lifecycle: Lifecycle) -> None:
        self.requests = Counter(
            "llm_requests",
            "Requests answered, by route and HTTP status",
            ["route", "status"],
            registry=registry,
        )
        self.duration = Histogram(
            "llm_request_duration_seconds",
            "Seconds from the request's arrival to the end of its response",
            ["route"],
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("llm_requests_in_flight", "Requests in progress", registry=registry)
        self.aborted = Counter(
            "llm_requests_aborted",
            "Requests whose client disconnected before the answer ended",
            ["route"],
            registry=registry,
        )
        self.rejected = Counter(
            "llm_requests_rejected",
            "Requests refused or ended by the server, by reason",
            ["reason"],
            registry=registry,
        )
        self.router_headers_ignored = Counter(
            "llm_router_headers_ignored",
            "Requests whose headers of a router were ignored, by reason",
            ["reason"],
            registry=registry,
        )
        registry.register(_LifecycleCollector(lifecycle))


class _LifecycleCollector:
    """Reads the lifecycle at scrape time, so that metrics and lifecycle never disagree."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        phase = GaugeMetricFamily("llm_phase", "1 for the current phase", labels=["phase"])
        for candidate in Phase:
            phase.add_metric([candidate], float(candidate is self._lifecycle.phase))
        yield phase
        load = GaugeMetricFamily(
            "llm_load_seconds", "Duration of each phase before ready, in seconds", labels=["phase"]
        )
        for finished, seconds in self._lifecycle.load_seconds.items():
            load.add_metric([finished], seconds)
        yield load
        if self._lifecycle.phase is Phase.DRAINING:
            yield GaugeMetricFamily(
                "llm_drain_seconds",
                "Seconds since the drain began; absent before it",
                self._lifecycle.phase_seconds,
            )
