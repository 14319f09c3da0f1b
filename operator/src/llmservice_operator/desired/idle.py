"""Decides whether a service that scales to zero loses its last replicas, or starts again."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime

from llmservice_operator.api.autoscaling import Autoscaling, ScalingMetric
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RouterPhase
from llmservice_operator.api.wake import Wake
from llmservice_operator.scaling.idleness import may_rest, woken_replicas


def idle_replicas(
    service: LLMService,
    current: int,
    pods: Set[str],
    report: LoadReport | None,
    wake: Wake | None,
    now: datetime,
    scheduled: int = 0,
) -> int | None:
    """Return the number of replicas of an idle service: 0 while it rests, more if it must start.

    None if the service is not idle, so that its autoscaler decides. `current` is the number of
    replicas that the workload requests, and `pods` contains the names of the replicas that are not
    being deleted. `scheduled` is the minimum number of replicas in the present window of the
    schedule, and 0 outside of all windows.
    """
    autoscaling = service.spec.autoscaling
    if autoscaling is None or not service.spec.scales_to_zero:
        return None
    if report is not None and report.is_stale(now.timestamp()):
        report = None
    if current == 0:
        return max(scheduled, 0 if wake is None else _woken(autoscaling, wake))
    if scheduled or wake is not None or report is None or not _takes_requests(service):
        return None
    # A report from before the last start would end the new replicas.
    reported = {each.pod for each in report.replicas if each.is_ready}
    is_about_them = bool(pods) and pods == reported
    rests = is_about_them and may_rest(report.idle_seconds, autoscaling.idle_after_seconds)
    return 0 if rests else None


def _takes_requests(service: LLMService) -> bool:
    """Return whether clients reach the router, which then holds their requests."""
    router = service.status.router
    return router is not None and router.phase is RouterPhase.SERVING


def _woken(autoscaling: Autoscaling, wake: Wake) -> int:
    match autoscaling.metric:
        case ScalingMetric.EFFECTIVE_GPU_UTILIZATION:
            load, target = wake.held_percent, autoscaling.target
        case ScalingMetric.REQUESTS_WAITING:
            load, target = wake.held_requests, autoscaling.target
        case _:
            load, target = 1, 1  # the other metrics say nothing about requests that wait
    return woken_replicas(load, target, autoscaling.min_replicas, autoscaling.max_replicas)
