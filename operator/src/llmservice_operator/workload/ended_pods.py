"""Finds the problem of pods that fail repeatedly while their workload replaces them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.workload.pod_problems import Problem, quoted, with_hint

RECENT_SECONDS: Final = 600.0
"""Age in seconds from which a failed pod is ignored, because Kubernetes keeps failed pods for a
long time."""

_DISK: Final = re.compile("ephemeral|EmptyDir|emptyDir|disk|inodes", re.IGNORECASE)
_DEVICES: Final = re.compile("Allocate failed|device", re.IGNORECASE)
_OUT_OF: Final = "OutOf"
"""Prefix of the reasons that a kubelet reports for refused pods if its node lacks a resource."""
_REJECTED: Final = frozenset(
    {
        "AppArmor",
        "InvalidNodeInfo",
        "NodeAffinity",
        "NodeName",
        "NodeSelectorMismatching",
        "SysctlForbidden",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
        "UnexpectedPredicateFailureType",
        "UnsupportedPodSpec",
    }
)


def ended_problem(pods: Iterable[Manifest], now: datetime) -> Problem | None:
    """Return the problem of the pod that failed last, if it failed in the last RECENT_SECONDS.

    Pods that ended as intended, for example because their node shut down, are not a problem.
    """
    recent = [pod for pod in pods if (now - _ended(pod)).total_seconds() < RECENT_SECONDS]
    for pod in sorted(recent, key=_ended, reverse=True):
        problem = _problem(pod)
        if problem is not None:
            return problem
    return None


def _problem(pod: Manifest) -> Problem | None:
    status = pod.get("status", {})
    reason, said = str(status.get("reason") or ""), quoted(status.get("message"))
    node = pod.get("spec", {}).get("nodeName") or "its node"
    if reason == "Evicted":
        is_disk = _DISK.search(said) is not None
        found = Reason.EPHEMERAL_STORAGE_EXCEEDED if is_disk else Reason.EVICTED
        return with_hint(found, f"The kubelet of {node} evicted the pod: {said}")
    if reason == "NodeLost":
        return with_hint(Reason.NODE_LOST, f"The node {node} does not report any more: {said}")
    lacks_device = reason.startswith(_OUT_OF) and "/" in reason
    if reason not in _REJECTED and not reason.startswith(_OUT_OF):
        return None
    if lacks_device or _DEVICES.search(said):
        said = f"The device plugin of {node} has no healthy accelerator for the pod: {said}"
        return with_hint(Reason.DEVICE_UNAVAILABLE, said)
    return with_hint(Reason.POD_REJECTED, f"The kubelet of {node} refused the pod: {said}")


def _ended(pod: Manifest) -> datetime:
    """Return the time at which the pod ended.

    If it is unknown, return the latest time in the pod's status.
    """
    status = pod.get("status", {})
    times = [
        *(each.get("lastTransitionTime") for each in status.get("conditions") or ()),
        *(
            each.get("state", {}).get("terminated", {}).get("finishedAt")
            for each in status.get("containerStatuses") or ()
        ),
        status.get("startTime"),
        pod["metadata"]["creationTimestamp"],
    ]
    return max(datetime.fromisoformat(each) for each in times if each)
