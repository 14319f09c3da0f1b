"""The load report of one LLMService: `GET /v1/scaling/{namespace}/{name}` of the metrics server.

The operator uses the report for the status, the deletion costs, the provider Direct and the mode
Recommend. KEDA reads one field of the report, the total of the service's metric: `demandPercent` by
default. An unknown number is null, never zero. The metrics server and the operator may have
different versions, so reasons are plain texts and unknown fields are ignored.
"""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.calibration import Calibration

STALE_SECONDS: Final = 60.0
"""Age in seconds above which a report is outdated. The metrics server has then stopped
measuring."""


_CONFIG: Final = ConfigDict(
    alias_generator=to_camel, populate_by_name=True, extra="ignore", allow_inf_nan=False
)
"""The form of the JSON. A metrics server keeps a report of every service, and a dataclass with
slots takes a third of the memory of a BaseModel."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ReplicaAdapter:
    """A LoRA adapter on a replica."""

    name: str
    source: str
    revision: str | None = None
    state: str
    """State of the adapter: loading, loaded or failed."""
    message: str = ""
    """Cause of the last failure as a sentence; empty if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ReplicaLoad:
    """One replica of the service, Ready or not."""

    pod: str
    """Name of the pod that serves the replica's requests."""
    is_ready: bool
    """Whether the replica is Ready and not being deleted."""
    phase: str | None = None
    """Phase that the replica's model server reports: importing, waiting_for_cache, downloading,
    loading, warming_up, smoke_testing, ready, draining or failed; null while the server does not
    respond."""
    elapsed_seconds: float | None = None
    """Seconds since the process of the model server started."""
    downloaded_bytes: int | None = None
    """Bytes of the weights on disk; null unless this server, or the one that fills the shared
    cache, is downloading."""
    total_bytes: int | None = None
    """Bytes of all weights; null unless this server, or the one that fills the shared cache, is
    downloading."""
    running_requests: int | None = None
    """Requests in the engine's batch."""
    waiting_requests: int | None = None
    """Requests that the server has accepted but the engine has not started."""
    kv_cache_percent: float | None = None
    """KV tokens in use, in percent of those that the engine can hold."""
    gpu_duty_cycle_percent: float | None = None
    """Percentage of the time in which a kernel ran on a GPU, as NVML reports it; the mean of the
    replica's GPUs."""
    adapters: tuple[ReplicaAdapter, ...] | None = None
    """LoRA adapters that the replica has loaded or tries to load; null if its model server does not
    report adapters or does not respond."""
    utilization_percent: float | None = None
    """Effective GPU utilization: the present work of the replica, in percent of the work that it
    sustains within the SLO."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ExternalMetrics:
    """Owner of external.metrics.k8s.io in this cluster, as the metrics server sees it."""

    is_served: bool
    """Whether a HorizontalPodAutoscaler can read the metrics, because the release of this metrics
    server owns the APIService."""
    owner: str | None = None
    """Other owner of the APIService: NAMESPACE/SERVICE, or `the API server itself`. Null if there
    is no other owner, and before the first check."""
    message: str
    """Sentences for the user about the state of the APIService."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class LoadReport:
    """The load of one LLMService as of the last scrape."""

    at: float
    """Time of the report, in seconds since 1970."""
    demand_percent: float | None
    """Total load in percent of one replica: 170 means two replicas at 85 %. Null means that the
    load is unknown, so the number of replicas does not change."""
    target_percent: float
    """Target load of one replica in percent. The demand, divided by this load, is the number of
    replicas."""
    missing: str | None = None
    """Cause of an unknown demand, as one CamelCase word: Starting, NoReadyReplica, ReplicasMissing,
    NoTrafficYet; null when the demand is known."""
    message: str
    """Sentence for the user about the load, or about the cause if the load is unknown."""
    replicas: tuple[ReplicaLoad, ...] = ()
    """All replicas of the service, sorted by name."""
    missing_replicas: int = 0
    """Number of Ready replicas that have not answered for 15 seconds or more."""
    capacity_requests_per_second: float | None = None
    """Request rate that one replica sustains within the SLO, in requests per second, for requests
    similar to the recent ones."""
    capacity_factor: float | None = None
    """Correction of the modelled capacity by the measured SLO misses."""
    cold_start_seconds: float
    """Seconds from the assignment of a node until a replica is Ready: a high percentile of the last
    cold starts, or 120 before the first one."""
    node_wait_seconds: float = 0.0
    """Seconds from the creation of a replica until it is assigned to a node: the median of the last
    waits."""
    longest_start_seconds: float | None = None
    """Seconds from the creation of a replica until it is Ready, which few replicas exceed: the sum
    of high percentiles of the last waits and of the last cold starts. Null from an older metrics
    server."""
    scale_down_window_seconds: float
    """Scale-down window in seconds: 1.5 times the duration of a cold start, but at least 90 and at
    most 600; 600 while the load is bursty."""
    foreseen_percent: float = 0.0
    """Load in percent of one replica for which replicas are started ahead of time, because it
    usually rises at this time of day. It is included in the demand. 0 if no rise is foreseen."""
    is_bursty: bool = False
    """Whether the load of the last ten minutes came in bursts."""
    attainment_percent: float | None = None
    """Requests that met the SLO, in percent of the last minute's requests whose latency was
    compared with the SLO."""
    ttft_p95_milliseconds: float | None = None
    """95th percentile of the time to first token of the requests of the last minute."""
    itl_p95_milliseconds: float | None = None
    """95th percentile of the requests' mean inter-token latency, over the last minute."""
    least_ttft_milliseconds: float | None = None
    """Smallest TTFT limit that an idle replica attains for the objective. Null if it attains the
    limit of the SLO, if there is none, or while unknown."""
    least_itl_milliseconds: float | None = None
    """Smallest ITL limit that an idle replica attains. Null if it attains the limit of the SLO, if
    there is none, or while unknown."""
    backlog_gpu_seconds: float | None = None
    """Queued work, in seconds of one replica: the larger of the present queue, less the part that
    batching needs, and the queue that is expected when new replicas begin to serve."""
    gpu_duty_cycle_percent: float | None = None
    """Sum of the Ready replicas' duty cycles: the metric GPUDutyCycle. Null without GPUs, or while
    unknown."""
    kv_cache_percent: float | None = None
    """Sum of the Ready replicas' KV cache use: the metric KVCacheUsage."""
    requests_waiting: float | None = None
    """Requests waiting on all Ready replicas: the metric RequestsWaiting."""
    calibration: Calibration | None = None
    """Learned calibration; null if there is none yet."""
    external_metrics: ExternalMetrics | None = None
    """Owner of external metrics in this cluster."""
    last_start_seconds: float | None = None
    """Seconds from the creation of the replica that became Ready last until it was Ready. Null
    while no start has been measured."""
    idle_seconds: float | None = None
    """Seconds for which nobody has needed the service, as far as this metrics server has watched
    it. Null without a router, while a replica or the router does not say whether it has requests,
    and with an old router."""
    has_old_router: bool = False
    """Whether a router pod is too old to tell of the request that would wake the service. The
    service then keeps its replicas."""

    def is_stale(self, now: float) -> bool:
        """Return whether the report is too old at `now`, in seconds since 1970."""
        return now - self.at > STALE_SECONDS

    def total(self, metric: ScalingMetric) -> float | None:
        """Return the total of a metric over all replicas, in the unit of the metric.

        Returns None while the total is unknown.
        """
        found: float | None = getattr(self, metric.report_field)
        return found


LOAD_REPORT: Final = TypeAdapter(LoadReport)
LOAD_REPORTS: Final = TypeAdapter(dict[str, LoadReport])
"""Reports by NAMESPACE/NAME."""
