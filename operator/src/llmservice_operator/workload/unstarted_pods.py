"""Pods that are assigned to a node and do not start. Only their Events show the cause."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.workload.pod_problems import (
    Problem,
    is_missing_object,
    quoted,
    start_problem,
    with_hint,
)
from llmservice_operator.workload.replica import condition, server_of

PATIENCE_SECONDS: Final = 120.0
"""Time in seconds that a pod may take to start before its Events are read. Without an image to
pull, a start takes some seconds."""
LOST_SECONDS: Final = 300.0
"""Time in seconds after which a pod has a problem if no scheduler has looked at it, or if its node
has not acknowledged it."""
LOOK_AGAIN_SECONDS: Final = 60.0

_NOT_YET: Final = ("ContainerCreating", "PodInitializing", None)
_ATTACHED: Final = "SuccessfulAttachVolume"
_MULTI_ATTACH: Final = re.compile("Multi-Attach|exclusively attached|already used by pod")


@dataclass(frozen=True)
class PodEvent:
    """An Event about a pod."""

    type: str
    reason: str
    message: str


def unstarted_since(pod: Manifest) -> datetime | None:
    """Return the time at which the pod was assigned to a node.

    None if it is not assigned, if one of its containers has started since, or if the state of its
    server container shows another reason for the delay.
    """
    scheduled, status = condition(pod, "PodScheduled"), pod.get("status", {})
    if scheduled.get("status") != "True" or status.get("phase") != "Pending":
        return None
    server = server_of(status.get("containerStatuses", ()))
    state = server.get("state") or {}
    if (state and state.keys() != {"waiting"}) or server.get("lastState"):
        return None
    if (state.get("waiting") or {}).get("reason") not in _NOT_YET:
        return None
    if any((each.get("state") or {}).get("running") for each in _init_statuses(pod)):
        return None
    since: str | None = scheduled.get("lastTransitionTime")
    return datetime.fromisoformat(since) if since else None


def unseen_since(pod: Manifest) -> datetime | None:
    """Return the time at which the pod was created.

    None if a scheduler has looked at the pod. A scheduler always adds a condition to the status.
    """
    if pod.get("status", {}).get("conditions") or pod.get("spec", {}).get("nodeName"):
        return None
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def overdue_since(pod: Manifest) -> datetime | None:
    """Return the time at which the pod should have ended. None if it is not being deleted."""
    due: str | None = pod["metadata"].get("deletionTimestamp")
    return datetime.fromisoformat(due) if due else None


def overdue_problem(pods: Iterable[Manifest], now: datetime) -> Problem | None:
    """Return the problem of the pods that should have ended long ago. None if there are none."""
    for pod in pods:
        since = overdue_since(pod)
        if since is not None and (now - since).total_seconds() >= PATIENCE_SECONDS:
            node, name = pod.get("spec", {}).get("nodeName") or "its node", pod["metadata"]["name"]
            said = f"The node {node} does not end the pod {name}, and new pods wait for its end."
            return with_hint(Reason.NODE_LOST, said)
    return None


def pod_to_ask_about(pods: Iterable[Manifest], now: datetime) -> Manifest | None:
    """Return the pod that has waited longest for its start. None if no pod has waited too long."""
    found = [
        (since, pod)
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and (since := unstarted_since(pod)) is not None
        and (now - since).total_seconds() >= PATIENCE_SECONDS
    ]
    return min(found, key=lambda each: each[0])[1] if found else None


def unstarted_problem(pod: Manifest, events: Sequence[PodEvent], now: datetime) -> Problem | None:
    """Return the problem that keeps the pod from starting. None if there is none yet.

    `events` are sorted from the oldest to the newest.
    """
    unseen = unseen_since(pod)
    if unseen is not None and (now - unseen).total_seconds() >= LOST_SECONDS:
        said = "No scheduler has looked at the pod. Check spec.template.schedulerName, and that the"
        return Problem(Reason.UNSCHEDULABLE, f"{said} scheduler runs.")
    since = unstarted_since(pod)
    if since is None:
        return None
    node = pod.get("spec", {}).get("nodeName") or "its node"
    waited = (now - since).total_seconds()
    if pod.get("status", {}).get("startTime") is None and waited >= LOST_SECONDS:
        return with_hint(Reason.NODE_LOST, f"The node {node} takes no notice of the pod.")
    event = _telling(events)
    if event is None or waited < PATIENCE_SECONDS:
        return None
    said = quoted(event.message)
    if _MULTI_ATTACH.search(said):
        said = f"The node {node} cannot attach a volume of the pod: {said}"
        return with_hint(Reason.VOLUME_IN_USE, said)
    if is_missing_object(said):
        return start_problem(said)
    said = f"The node {node} does not start the pod ({event.reason}): {said}"
    return with_hint(Reason.POD_NOT_STARTING, said)


def _telling(events: Sequence[PodEvent]) -> PodEvent | None:
    """Return the Event that names the cause. None if the last Event is no warning.

    For example, the Events of a long image pull are no warnings. The Event about a volume that
    cannot be attached need not be the last one: it comes once, and later Events only report
    timeouts.
    """
    if not events or events[-1].type != "Warning":
        return None
    for event in reversed(events):
        if event.reason == _ATTACHED:
            break
        if event.type == "Warning" and _MULTI_ATTACH.search(event.message):
            return event
    return events[-1]


def look_again_seconds(pods: Iterable[Manifest], now: datetime) -> float | None:
    """Return the seconds until a pod becomes a problem because it has not started or not ended, or
    until the problem of such a pod may change.

    None if there is no such pod.
    """
    waits = [
        (now - since).total_seconds()
        for pod in pods
        for since in (unstarted_since(pod) or unseen_since(pod) or overdue_since(pod),)
        if since is not None
    ]
    if not waits:
        return None
    left = PATIENCE_SECONDS - max(waits)
    return min(left, PATIENCE_SECONDS) if left > 0 else LOOK_AGAIN_SECONDS


def _init_statuses(pod: Manifest) -> Iterable[Mapping[str, Any]]:
    found: Iterable[Mapping[str, Any]] = pod.get("status", {}).get("initContainerStatuses") or ()
    return found
