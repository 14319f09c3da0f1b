"""The Prometheus metrics of the metrics server: those of the process, and the reports.

An unknown value has no sample, and is never exposed as zero.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmservice_operator import names
from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.load_report import LoadReport, ReplicaLoad
from llmservice_operator.cluster import Key
from llmservice_operator.metrics_server.registration import Registration
from llmservice_operator.metrics_server.secure_server import SecureServer
from llmservice_operator.telemetry import ProcessMetrics

SERVICE_LABELS = ("namespace", names.METRIC_SERVICE_LABEL)

PREFIX = "llmservice_metrics_server"

ROUND_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 10, 30)
"""Bucket bounds in seconds. A round begins every 5 seconds, and a scrape takes at most 4."""

OF_SERVICE: tuple[tuple[str, str, Callable[[LoadReport], float | None]], ...] = (
    (
        ScalingMetric.EFFECTIVE_GPU_UTILIZATION.external_name,
        "Load in percent of what one replica sustains",
        lambda it: it.demand_percent,
    ),
    ("llm_capacity_factor", "Correction of the capacity", lambda it: it.capacity_factor),
    (
        "llm_capacity_requests_per_second",
        "Requests that one replica sustains",
        lambda it: it.capacity_requests_per_second,
    ),
    ("llm_backlog_gpu_seconds", "Queued work", lambda it: it.backlog_gpu_seconds),
    ("llm_cold_start_seconds", "Node assigned to Ready", lambda it: it.cold_start_seconds),
    ("llm_node_wait_seconds", "Created to node assigned", lambda it: it.node_wait_seconds),
    (
        "llm_foreseen_load_percent",
        "Load for which replicas are started ahead of time",
        lambda it: it.foreseen_percent,
    ),
    (
        "llm_slo_attainment_percent",
        "Requests of the last minute within the SLO",
        lambda it: it.attainment_percent,
    ),
    (
        ScalingMetric.REQUESTS_WAITING.external_name,
        "Requests not begun",
        lambda it: it.requests_waiting,
    ),
    (
        "llm_replicas_missing",
        "Ready replicas that do not answer the metrics server",
        lambda it: it.missing_replicas,
    ),
)

OF_REPLICA: tuple[tuple[str, str, Callable[[ReplicaLoad], float | None]], ...] = (
    (
        "llm_effective_gpu_utilization_percent",
        "Work being done, of what the replica sustains within the SLO",
        lambda it: it.utilization_percent,
    ),
    # ScalingMetric has the names of the totals over all replicas. These are the values of one.
    (
        "llm_replica_gpu_duty_cycle_percent",
        "Share of the time in which a kernel ran, mean of the replica's GPUs",
        lambda it: it.gpu_duty_cycle_percent,
    ),
    (
        "llm_replica_kv_cache_usage_percent",
        "KV tokens in use, of those that the engine can hold",
        lambda it: it.kv_cache_percent,
    ),
)


class ReportCollector(Collector):
    """Reads the reports at every scrape."""

    def __init__(self, reports: Callable[[], Mapping[Key, LoadReport]]) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        reports = self._reports()
        for name, text, read in OF_SERVICE:
            family = GaugeMetricFamily(name, text, labels=SERVICE_LABELS)
            for key, report in reports.items():
                if (value := read(report)) is not None:
                    family.add_metric(key, value)
            yield family
        for name, text, read_replica in OF_REPLICA:
            family = GaugeMetricFamily(name, text, labels=(*SERVICE_LABELS, "pod"))
            for key, report in reports.items():
                for replica in report.replicas:
                    if (value := read_replica(replica)) is not None:
                        family.add_metric((*key, replica.pod), value)
            yield family


class MetricsServerMetrics(ProcessMetrics):
    """All metrics of the process."""

    def __init__(self) -> None:
        super().__init__()
        self._rounds = Histogram(
            f"{PREFIX}_round_duration_seconds",
            "Time to ask all replicas and to build all reports",
            buckets=ROUND_SECONDS,
            registry=self.registry,
        )
        self._scrapes = Counter(
            f"{PREFIX}_scrapes",
            "Scrapes of replicas by result",
            ("result",),
            registry=self.registry,
        )

    def read_shares(
        self, members: Callable[[], int], services: Callable[[], tuple[int, int]]
    ) -> None:
        """Register the functions that return the number of metrics servers, and the numbers of
        services of which this one is the learner and the follower.
        """
        self.registry.register(_ShareCollector(members, services))

    def read_reports(self, reports: Callable[[], Mapping[Key, LoadReport]]) -> None:
        """Register the function that returns the newest reports. It is called at every scrape."""
        self.registry.register(ReportCollector(reports))

    def read_external(self, secure: SecureServer, registration: Registration) -> None:
        """Register the parts that serve external metrics, which are read at every scrape."""
        self.registry.register(_ExternalCollector(secure, registration))

    def round_ended(self, seconds: float) -> None:
        self._rounds.observe(seconds)

    def scraped(self, answered: int, failed: int) -> None:
        """Count the replicas that a round has asked."""
        self._scrapes.labels("answered").inc(answered)
        self._scrapes.labels("failed").inc(failed)


class _ShareCollector(Collector):
    """Reads the share of this metrics server."""

    def __init__(self, members: Callable[[], int], services: Callable[[], tuple[int, int]]) -> None:
        self._members = members
        self._services = services

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{PREFIX}_members",
            "Ready metrics servers, as far as this one knows",
            float(self._members()),
        )
        services = GaugeMetricFamily(
            f"{PREFIX}_services", "Services that this metrics server watches", labels=("role",)
        )
        learned, followed = self._services()
        services.add_metric(("learner",), learned)
        services.add_metric(("follower",), followed)
        yield services


class _ExternalCollector(Collector):
    """Reads the APIService and the certificate, as this process knows them."""

    def __init__(self, secure: SecureServer, registration: Registration) -> None:
        self._secure = secure
        self._registration = registration

    def collect(self) -> Iterator[Metric]:
        state = self._registration.state
        yield GaugeMetricFamily(
            f"{PREFIX}_api_service_owned",
            "1 if the APIService of external metrics refers to this release",
            float(state.is_served),
        )
        owner = GaugeMetricFamily(
            f"{PREFIX}_api_service_other_owner",
            "1 for another owner of the APIService",
            labels=("owner",),
        )
        if state.owner is not None:
            owner.add_metric((state.owner,), 1)
        yield owner
        available = GaugeMetricFamily(
            f"{PREFIX}_api_service_available",
            "1 if the API server reaches the server of the APIService",
        )
        if self._registration.is_available is not None:
            available.add_metric((), float(self._registration.is_available))
        yield available
        yield GaugeMetricFamily(
            f"{PREFIX}_certificate_expiry_timestamp_seconds",
            "End of the serving certificate, in seconds since 1970",
            self._secure.expires_at.timestamp(),
        )
