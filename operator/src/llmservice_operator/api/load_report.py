"""What the metrics server knows about one LLMService: `GET /v1/scaling/{namespace}/{name}`.

The operator reads it for status, deletion cost and direct mode, KEDA for `demandPercent`. Null
always means unknown, and never zero. Both sides may be of different versions, so reasons are texts
and unknown fields are ignored.
"""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.fields import Fields

STALE_SECONDS: Final = 60.0
"""Age from which a report says nothing about now: its metrics server hangs."""


class ReplicaLoad(Fields):
    """One pod of the service, Ready or not."""

    pod: str
    """Name of the pod."""
    is_ready: bool
    """Whether the pod is Ready and stays: one that is being deleted is not."""
    phase: str | None = None
    """What its model server says it does: importing, waiting_for_cache, downloading, loading,
    warming_up, ready, draining or failed; null while it does not answer."""
    elapsed_seconds: float | None = None
    """Seconds since the process of the model server started."""
    downloaded_bytes: int | None = None
    """Bytes of the weights that are on disk; only while downloading."""
    total_bytes: int | None = None
    """Bytes of all weights; only while downloading."""
    running_requests: int | None = None
    """Requests in the engine's batch."""
    waiting_requests: int | None = None
    """Requests that the server accepted and has not begun."""
    kv_cache_percent: float | None = None
    """KV tokens in use, of those that the engine can hold."""
    gpu_duty_cycle_percent: float | None = None
    """Share of the time in which a kernel ran, mean of the replica's GPUs, as NVML tells it."""
    utilization_percent: float | None = None
    """Effective GPU utilization: work being done, of what the replica sustains within the SLO."""


class ExternalMetrics(Fields):
    """Who serves external.metrics.k8s.io in this cluster, as the metrics server sees it."""

    is_served: bool
    """Whether a HorizontalPodAutoscaler can read our metrics: the APIService is ours."""
    owner: str | None = None
    """Who owns the APIService if it is not ours, as NAMESPACE/SERVICE; null when nobody does, or
    nobody looked."""
    message: str
    """Why, as a sentence for the user."""


class LoadReport(Fields):
    """The answer for one LLMService, as of the last scrape."""

    at: float
    """When it was made, in seconds since 1970."""
    demand_percent: float | None
    """Total load in percent of one replica: 170 is two replicas at 85 %. Null: unknown, hold."""
    target_percent: float
    """Percent of a replica that the demand is divided by."""
    missing: str | None = None
    """Why the demand is unknown, as one CamelCase word: Starting, NoReadyReplica, ReplicasMissing,
    NoTrafficYet; null when it is known."""
    message: str
    """What is known and what is not, as a sentence for the user."""
    replicas: tuple[ReplicaLoad, ...] = ()
    """All pods of the service, sorted by name."""
    missing_replicas: int = 0
    """Ready pods that have not answered for 15 seconds or more."""
    capacity_requests_per_second: float | None = None
    """Requests like the recent ones that one replica sustains within the SLO."""
    capacity_factor: float | None = None
    """Correction of the modelled capacity from the SLO misses that really happened."""
    cold_start_seconds: float
    """How long a new pod takes to be Ready: high percentile of the last ones, 120 before any."""
    scale_down_window_seconds: float
    """How long a scale-down should look back: 1.5 cold starts, 600 while the load is bursty."""
    is_bursty: bool = False
    """Whether the load of the last ten minutes came in bursts."""
    attainment_percent: float | None = None
    """Requests of the last minute within the SLO, of those that it applies to."""
    ttft_p95_milliseconds: float | None = None
    """95th percentile of the time to first token of the requests of the last minute."""
    itl_p95_milliseconds: float | None = None
    """95th percentile of the requests' mean inter-token latency, over the last minute."""
    backlog_gpu_seconds: float | None = None
    """Queued work in seconds of one replica, with what queues up until new replicas serve."""
    gpu_duty_cycle_percent: float | None = None
    """Sum of the Ready replicas' duty cycles: the metric GPUDutyCycle. Null without GPUs."""
    kv_cache_percent: float | None = None
    """Sum of the Ready replicas' KV cache use: the metric KVCacheUsage."""
    requests_waiting: float | None = None
    """Requests waiting on all Ready replicas: the metric RequestsWaiting."""
    calibration: Calibration | None = None
    """What was learned; null before anything was."""
    external_metrics: ExternalMetrics | None = None
    """Whether and by whom external metrics are served."""

    def is_stale(self, now: float) -> bool:
        """Return whether the report is too old at `now`, in seconds since 1970."""
        return now - self.at > STALE_SECONDS

    def total(self, metric: ScalingMetric) -> float | None:
        """Return the total of a metric over all replicas, in its unit; None while unknown."""
        found: float | None = getattr(self, metric.report_field)
        return found
