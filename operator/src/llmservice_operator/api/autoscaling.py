"""spec.autoscaling and spec.slo: the bounds and the target of scaling, and the latency
objectives.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Final, Self

from pydantic import Field
from pydantic.alias_generators import to_camel

from llmservice_operator.api.fields import ATOMIC, Fields, Rule
from llmservice_operator.api.schedule import MAX_REPLICAS, ScheduledReplicas

DEFAULT_TTFT_MILLISECONDS: Final = 500
DEFAULT_ITL_MILLISECONDS: Final = 50
"""Default limit of the ITL, in milliseconds. At this rate, a person can read the answer as it
arrives."""


class ScalingMetric(StrEnum):
    """A metric of the load, with the names under which its total over all replicas is published."""

    EFFECTIVE_GPU_UTILIZATION = (
        "EffectiveGPUUtilization",
        "llm_gpu_demand_percent",
        "demand_percent",
        "%",
    )
    GPU_DUTY_CYCLE = "GPUDutyCycle", "llm_gpu_duty_cycle_percent", "gpu_duty_cycle_percent", "%"
    KV_CACHE_USAGE = "KVCacheUsage", "llm_kv_cache_usage_percent", "kv_cache_percent", "%"
    REQUESTS_WAITING = "RequestsWaiting", "llm_requests_waiting", "requests_waiting", ""

    external_name: str
    """Name of the metric in external.metrics.k8s.io."""
    report_field: str
    """Field of LoadReport that contains the total."""
    unit: str
    """Unit of the metric; empty for a plain number."""

    def __new__(cls, word: str, external_name: str, report_field: str, unit: str) -> Self:
        made = str.__new__(cls, word)
        made._value_ = word
        made.external_name, made.report_field, made.unit = external_name, report_field, unit
        return made

    @property
    def json_field(self) -> str:
        """Name of the report's field in JSON."""
        return to_camel(self.report_field)


class ScalingMode(StrEnum):
    ACTIVE = "Active"
    RECOMMEND = "Recommend"
    PAUSED = "Paused"


class ScalingForecast(StrEnum):
    AUTO = "Auto"
    OFF = "Off"


class ScalingProvider(StrEnum):
    AUTO = "Auto"
    EXTERNAL = "External"
    KEDA = "KEDA"
    DIRECT = "Direct"


class Idle(Fields):
    after_seconds: Annotated[int, Field(ge=60, le=604_800)] = 900
    """Time in seconds without any request after which the last replicas of a service with
    minReplicas: 0 end. A replica that starts and an adapter that is being loaded count as
    requests."""
    schedule: Annotated[
        tuple[ScheduledReplicas, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """Windows of time in which a minimum number of replicas runs, with any minReplicas. Of several
    windows at the same time, the one with the most replicas counts."""


class Autoscaling(Fields):
    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    """Minimum number of replicas. With 0, the service has no replicas while nobody uses it. The
    next request waits in the router until a replica has started, for at most
    router.holdTimeoutSeconds. Such a service therefore has a router."""
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)]
    """Maximum number of replicas."""
    idle: Idle | None = None
    """When a service with minReplicas: 0 loses its last replicas, by default after 900 seconds
    without a request; and when replicas run although nobody needs them yet."""
    target_gpu_utilization: Annotated[int, Field(alias="targetGPUUtilization", ge=10, le=100)] = 85
    """Target load of each replica, in percent of the load that the replica can sustain; the rest is
    headroom for bursts. With the metric GPUDutyCycle or KVCacheUsage, it is the target value of
    that metric, in percent. With RequestsWaiting, set targetRequestsWaiting instead."""
    target_requests_waiting: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Target number of waiting requests per replica, for the metric RequestsWaiting only. Default:
    5."""
    metric: ScalingMetric = ScalingMetric.EFFECTIVE_GPU_UTILIZATION
    """Metric that measures the load. EffectiveGPUUtilization grows linearly with the load, and is
    100 at the highest load that meets the SLO. The other metrics are for comparison: GPUDutyCycle
    is near 100 under any load, KVCacheUsage ignores the work of long prompts, and RequestsWaiting
    stays near 0 until the service is overloaded."""
    mode: ScalingMode = ScalingMode.ACTIVE
    """Effect of autoscaling. Active: the number of replicas follows the load. Recommend: the
    operator does not change the number, and the status reports the number that Active would set.
    Paused: the operator does not change the number."""
    forecast: ScalingForecast = ScalingForecast.AUTO
    """Whether replicas are started before a load that usually rises at this time. Auto: if the load
    rose at this time on five of the last seven days including a week ago, or on this day of the
    week in the last two weeks, the replicas are ready when it rises again. Their number is at most
    the usual one, and never lower than the present load needs. It applies to the metric
    EffectiveGPUUtilization. Off: the load of past days is neither used nor stored."""
    provider: ScalingProvider = ScalingProvider.AUTO
    """Component that changes the number of replicas. External: a HorizontalPodAutoscaler that reads
    the metrics server through external.metrics.k8s.io. KEDA: a ScaledObject that reads the metrics
    server directly. Direct: the operator. Auto: usually External. If another component owns
    external.metrics.k8s.io, if the operator is confined to namespaces, or if the chart value
    metricsAPI.enabled is false, Auto means KEDA if it is installed and the chart value keda.enabled
    is true, otherwise Direct."""

    rules: ClassVar = (
        Rule(
            "minReplicas",
            cel="self.minReplicas <= self.maxReplicas",
            message="must be at most maxReplicas: lower it or raise maxReplicas",
            holds=lambda self: self.min_replicas <= self.max_replicas,
        ),
        Rule(
            "idle",
            cel="!has(self.idle) || self.minReplicas == 0 || "
            "has(self.idle.schedule) && size(self.idle.schedule) > 0",
            message="has no effect unless minReplicas is 0 or idle.schedule is set: set "
            "minReplicas: 0, or remove idle",
            holds=lambda self: self.idle is None or self.min_replicas == 0 or bool(self.schedule),
        ),
        Rule(
            "idle.schedule",
            cel="!has(self.idle) || !has(self.idle.schedule) || "
            "self.idle.schedule.all(window, window.minReplicas <= self.maxReplicas)",
            message="must not ask for more replicas than maxReplicas: lower the minReplicas of the "
            "window, or raise maxReplicas",
            holds=lambda self: all(it.min_replicas <= self.max_replicas for it in self.schedule),
        ),
        Rule(
            "targetRequestsWaiting",
            cel="!has(self.targetRequestsWaiting) || self.metric == 'RequestsWaiting'",
            message="requires the metric RequestsWaiting: remove it, or choose that metric",
            holds=lambda self: (
                self.target_requests_waiting is None
                or self.metric is ScalingMetric.REQUESTS_WAITING
            ),
        ),
    )

    @property
    def target(self) -> int:
        """Target value of the metric per replica, in the metric's own unit."""
        if self.metric is ScalingMetric.REQUESTS_WAITING:
            return self.target_requests_waiting or 5
        return self.target_gpu_utilization

    @property
    def fewest_running(self) -> int:
        """Minimum number of replicas while the service is not idle."""
        return max(self.min_replicas, 1)

    @property
    def scales_to_zero(self) -> bool:
        """Whether the service has no replicas while nobody uses it."""
        return self.min_replicas == 0 and self.mode is ScalingMode.ACTIVE

    @property
    def idle_after_seconds(self) -> int:
        return (self.idle or Idle()).after_seconds

    @property
    def schedule(self) -> tuple[ScheduledReplicas, ...]:
        """Windows of time with a minimum number of replicas of their own."""
        return () if self.idle is None else self.idle.schedule

    @property
    def raising_windows(self) -> tuple[ScheduledReplicas, ...]:
        """Windows of the schedule that raise the minimum number of replicas."""
        return tuple(it for it in self.schedule if it.min_replicas > self.min_replicas)

    def clamp(self, replicas: int) -> int:
        """Return the number, limited to the bounds of a service that is not idle."""
        return min(max(replicas, self.fewest_running), self.max_replicas)


class Slo(Fields):
    """Latency limits of a request. Without a limit, no attainment is measured."""

    ttft_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """Maximum time from the arrival of a request to its first token, in milliseconds. Default: no
    limit."""
    itl_milliseconds: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    """Maximum mean time between two tokens of an answer, in milliseconds. Default: no limit."""
    objective_percent: Annotated[int, Field(ge=50, le=99)] = 95
    """Target percentage of requests within the limits that are set."""

    @property
    def is_limited(self) -> bool:
        return self.ttft_milliseconds is not None or self.itl_milliseconds is not None

    @property
    def words(self) -> str:
        limits = {"a TTFT": self.ttft_milliseconds, "a mean ITL": self.itl_milliseconds}
        return " and ".join(f"{it} of {ms} ms" for it, ms in limits.items() if ms is not None)


DEFAULT_SLO: Final = Slo(
    ttft_milliseconds=DEFAULT_TTFT_MILLISECONDS, itl_milliseconds=DEFAULT_ITL_MILLISECONDS
)
