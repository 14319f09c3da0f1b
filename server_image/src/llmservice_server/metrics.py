"""Declares the server's own metric families. vLLM's families (`vllm:*`) are unchanged."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from llmservice_server.engine_usage import EngineUsage
from llmservice_server.lifecycle import Lifecycle, Phase

_DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bucket bounds in seconds, from a refused request to a long answer of a large model."""


class ServerMetrics:
    """Metrics of the gate, the lifecycle and the engine. A registry can have only one instance."""

    def __init__(
        self, registry: CollectorRegistry, lifecycle: Lifecycle, usage: EngineUsage
    ) -> None:
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
        registry.register(_EngineCollector(usage))


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
        yield GaugeMetricFamily(
            "llm_phase_age_seconds",
            "Age of the current phase, in seconds",
            self._lifecycle.phase_seconds,
        )
        done = GaugeMetricFamily("llm_download_bytes", "Bytes of the weights on disk")
        whole = GaugeMetricFamily("llm_download_expected_bytes", "Bytes of all weights")
        if (download := self._lifecycle.download) is not None:
            done.add_metric([], download.bytes_done)
            whole.add_metric([], download.bytes_total)
        yield from (done, whole)


class _EngineCollector:
    """Reads the counters of the engine at scrape time."""

    def __init__(self, usage: EngineUsage) -> None:
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        counters, objectives = self._usage.counters, self._usage.objectives
        judged = CounterMetricFamily(
            "llm_slo_requests", "Finished requests that an SLO applies to", labels=["slo"]
        )
        met = CounterMetricFamily(
            "llm_slo_requests_met", "Finished requests that met the SLO", labels=["slo"]
        )
        for slo, limit, number in (
            ("ttft", objectives.ttft, counters.ttft_met),
            ("itl", objectives.itl, counters.itl_met),
        ):
            if limit is not None:
                judged.add_metric([slo], counters.judged)
                met.add_metric([slo], number)
        yield from (judged, met)
        yield from self._of_keys()

    def _of_keys(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "llm_key_requests", "Requests answered, by the name of their API key", labels=["key"]
        )
        tokens = CounterMetricFamily(
            "llm_key_tokens",
            "Tokens of finished requests, by the name of their API key",
            labels=["key", "type"],
        )
        # The event loop of the API may add a key meanwhile.
        for key, used in self._usage.keys.by_key.copy().items():
            requests.add_metric([key], used.requests)
            tokens.add_metric([key, "prompt"], used.prompt_tokens)
            tokens.add_metric([key, "generated"], used.generated_tokens)
        yield from (requests, tokens)
