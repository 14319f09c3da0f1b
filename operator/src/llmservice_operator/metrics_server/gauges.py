"""Exposes the reports as Prometheus gauges. An unknown value has no sample, and is never exposed as
zero.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmservice_operator import names
from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.load_report import LoadReport, ReplicaLoad
from llmservice_operator.cluster import Key

SERVICE_LABELS = ("namespace", names.METRIC_SERVICE_LABEL)

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
    ("llm_cold_start_seconds", "Pod created to Ready", lambda it: it.cold_start_seconds),
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
    (
        ScalingMetric.GPU_DUTY_CYCLE.external_name,
        "Share of the time in which a kernel ran",
        lambda it: it.gpu_duty_cycle_percent,
    ),
    (
        ScalingMetric.KV_CACHE_USAGE.external_name,
        "KV tokens in use",
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
