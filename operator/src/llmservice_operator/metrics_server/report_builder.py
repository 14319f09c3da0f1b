"""Builds the load report of one service from its replicas, the responses of their model servers,
and an assessment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.api.load_report import ExternalMetrics, LoadReport, ReplicaLoad
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.scaling.assess import FRESH_SECONDS, Assessment, Missing
from llmservice_operator.scaling.demand import SHORTEST_DRAIN_SECONDS
from llmservice_operator.scaling.latency import Latencies, percentile_milliseconds
from llmservice_operator.scaling.signals import ReplicaReport
from llmservice_operator.scaling.traffic import FEWEST_REQUESTS
from llmservice_operator.workload import Replica

_LOADING: Final = "loading"
"""State of an adapter that a model server is loading."""


def scaling_view(replica: Replica, answer: EngineAnswer | None) -> ReplicaReport:
    """Return the facts about a replica that the scaling core uses; `answer` is the response of its
    model server, or None if there was none.
    """
    ready_since, scheduled_since = replica.ready_since, replica.scheduled_since
    return ReplicaReport(
        replica.name,
        replica.created.timestamp(),
        replica.is_ready,
        None if ready_since is None else ready_since.timestamp(),
        replica.is_leaving,
        answer.snapshot if answer else None,
        None if scheduled_since is None else scheduled_since.timestamp(),
        any(it.state == _LOADING for it in (answer and answer.adapters) or ()),
    )


def build_report(
    at: float,
    replicas: Sequence[Replica],
    answers: Mapping[str, EngineAnswer],
    assessment: Assessment,
    latencies: Latencies,
    target_percent: float,
    calibration: Calibration | None,
    external_metrics: ExternalMetrics,
    idle_seconds: float | None = None,
    last_start_seconds: float | None = None,
    has_old_router: bool = False,
) -> LoadReport:
    """Return the report; `answers` contains the newest answer of each replica."""
    serving = [it for it in replicas if it.serves]
    parts = assessment.parts
    drain_seconds = max(SHORTEST_DRAIN_SECONDS, assessment.cold_start_seconds)
    backlog = None if parts is None else parts.backlog * drain_seconds
    attainment = assessment.attainment
    total = _Totals(at, serving, answers)
    return LoadReport(
        at=at,
        demand_percent=assessment.demand_percent,
        target_percent=target_percent,
        missing=assessment.missing,
        message=_message(assessment, len(serving)),
        replicas=tuple(
            _replica(it, answers.get(it.name), assessment.utilization_percent.get(it.name), at)
            for it in sorted(replicas, key=lambda it: it.name)
        ),
        missing_replicas=assessment.missing_replicas,
        capacity_requests_per_second=assessment.capacity,
        capacity_factor=assessment.capacity_factor,
        cold_start_seconds=assessment.cold_start_seconds,
        node_wait_seconds=assessment.node_wait_seconds,
        longest_start_seconds=assessment.longest_start_seconds,
        scale_down_window_seconds=assessment.scale_down_window_seconds,
        foreseen_percent=assessment.foreseen_percent,
        is_bursty=assessment.is_bursty,
        attainment_percent=None if attainment is None else 100 * attainment,
        ttft_p95_milliseconds=percentile_milliseconds(latencies.ttft, 0.95),
        itl_p95_milliseconds=percentile_milliseconds(latencies.itl, 0.95),
        least_ttft_milliseconds=_in_milliseconds(assessment.least_limits.ttft_seconds),
        least_itl_milliseconds=_in_milliseconds(assessment.least_limits.itl_seconds),
        backlog_gpu_seconds=backlog,
        gpu_duty_cycle_percent=total.of(lambda answer: answer.gpu_duty_cycle_percent),
        kv_cache_percent=total.of(_kv_percent),
        requests_waiting=total.of(lambda answer: answer.snapshot.waiting),
        calibration=None if calibration is None else _without_history(calibration),
        external_metrics=external_metrics,
        idle_seconds=idle_seconds,
        last_start_seconds=last_start_seconds,
        has_old_router=has_old_router,
    )


@dataclass(frozen=True)
class _Totals:
    """Sums over the Ready replicas: the totals of all metrics except the demand."""

    at: float
    serving: Sequence[Replica]
    answers: Mapping[str, EngineAnswer]

    def of(self, read: Callable[[EngineAnswer], float | None]) -> float | None:
        """Return the sum, with the mean in place of each value that a replica does not report.

        Returns None if no replica reports a value, or if more than half of the replicas do not.
        """
        fresh = [
            answer
            for it in self.serving
            if (answer := self.answers.get(it.name)) and _is_fresh(answer, self.at)
        ]
        values = [value for answer in fresh if (value := read(answer)) is not None]
        if not values or 2 * len(values) < len(self.serving):
            return None
        return sum(values) / len(values) * len(self.serving)


def _without_history(calibration: Calibration) -> Calibration:
    """Return the calibration without the longest part, which only a new metrics server reads."""
    return calibration.model_copy(update={"load_history": None, "history_slot": None})


def _in_milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _is_fresh(answer: EngineAnswer, at: float) -> bool:
    return at - answer.snapshot.at <= FRESH_SECONDS


def _kv_percent(answer: EngineAnswer) -> float | None:
    snapshot = answer.snapshot
    if snapshot.kv_capacity_tokens <= 0:
        return None
    return 100 * snapshot.kv_tokens / snapshot.kv_capacity_tokens


def _replica(
    replica: Replica, answer: EngineAnswer | None, utilization: float | None, at: float
) -> ReplicaLoad:
    if answer is None or not _is_fresh(answer, at):
        return ReplicaLoad(pod=replica.name, is_ready=replica.serves)
    return ReplicaLoad(
        pod=replica.name,
        is_ready=replica.serves,
        phase=answer.phase,
        elapsed_seconds=answer.elapsed_seconds,
        downloaded_bytes=answer.downloaded_bytes,
        total_bytes=answer.total_bytes,
        adapters=answer.adapters,
        running_requests=answer.snapshot.running,
        waiting_requests=answer.snapshot.waiting,
        kv_cache_percent=_kv_percent(answer),
        gpu_duty_cycle_percent=answer.gpu_duty_cycle_percent,
        utilization_percent=utilization,
    )


def _message(assessment: Assessment, serving: int) -> str:
    silent = assessment.missing_replicas
    match assessment.missing:
        case None:
            said = f"The load is {assessment.demand_percent:.0f} % of what one replica sustains."
            if silent:
                said += f" {silent} of {serving} Ready replicas do not answer. {_REMEDY}"
            return said
        case Missing.STARTING:
            return "The load is known once the replicas have been watched for a minute."
        case Missing.NO_READY_REPLICA:
            return "No replica is ready, so the load is unknown; the condition Ready says why."
        case Missing.REPLICAS_MISSING:
            return f"{silent} of {serving} Ready replicas do not answer. {_REMEDY}"
        case Missing.NO_TRAFFIC_YET:
            return (
                f"Fewer than {FEWEST_REQUESTS} requests have been answered, so the cost of one is"
                " not known yet."
            )


_REMEDY = (
    "Look at their logs, and for a NetworkPolicy that blocks port 9090 for the metrics server."
)
