"""Builds the part of the status about a service that has no replicas because nobody uses it."""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.conditions import ConditionType, ConditionUpdate
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService

LATE_START: Final = "StartLongerThanHold"
"""Reason of the Event about a start that takes longer than a request waits in the router."""

OLD_ROUTER: Final = "RouterTooOld"
"""Reason of the Event about a router that cannot wake the service."""


def is_idle(service: LLMService, desired: int) -> bool:
    """Return whether the service has no replicas until the next request."""
    return desired == 0 and service.spec.scales_to_zero


def build_idle(
    kind: ConditionType, service: LLMService, report: LoadReport | None
) -> ConditionUpdate:
    """Return the condition of a service that rests. It is True while a request can wake it."""
    if report is None:
        reason = Reason.METRICS_MISSING
        return ConditionUpdate(
            kind,
            "False",
            reason,
            "No replica runs, and the metrics server, which notices the request that wakes the "
            f"service, does not answer. {reason.hint}",
        )
    return ConditionUpdate(kind, "True", Reason.IDLE, _message(service, report))


def build_idle_unavailable(service: LLMService, report: LoadReport | None) -> ConditionUpdate:
    """Return the condition Available of a service that rests."""
    message = build_idle(ConditionType.AVAILABLE, service, report)
    return ConditionUpdate(ConditionType.AVAILABLE, "False", message.reason, message.message)


def _message(service: LLMService, report: LoadReport) -> str:
    autoscaling = service.spec.autoscaling
    waited = "" if autoscaling is None else f" for {autoscaling.idle_after_seconds} s"
    start = report.last_start_seconds
    took = "" if start is None else f" The last start took {start:.0f} s."
    return (
        f"No replica runs, because there was no request{waited}. The next request wakes the "
        f"service.{took}"
    )


def build_router_notices(service: LLMService, report: LoadReport | None) -> tuple[str, ...]:
    """Return a notice if the service keeps its replicas because of an old router."""
    if report is None or not report.has_old_router or not service.spec.scales_to_zero:
        return ()
    return (
        "The service keeps its replicas while nobody uses it, because a router pod is too old to "
        "wake it: remove spec.router.image, or set the chart value router.image to an image of the "
        "operator's version.",
    )


def build_start_notices(service: LLMService, report: LoadReport | None) -> tuple[str, ...]:
    """Return a notice if requests give up before a service that rests has started."""
    start = None if report is None else report.last_start_seconds
    hold = service.spec.router_settings.hold_timeout_seconds
    if start is None or not service.spec.scales_to_zero or start <= hold:
        return ()
    return (
        f"The last start of a replica took {start:.0f} s, but a request waits in the router for at "
        f"most {hold} s: raise router.holdTimeoutSeconds, or set autoscaling.minReplicas to 1.",
    )
