"""Objects of the API server -> the state of a service as `kubectl llm status` tells it. Pure.

The numbers come from the status, as the operator wrote it. A value that the status lacks is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason

_OF_READY: Final = frozenset({"Ready", "Progressing", "Available", "ModelReady"})
"""Conditions that tell the story of Ready again, from another side."""
_UNSEEN: Final = (
    "The operator has not written a status yet.",
    "Wait some seconds. If this stays, look whether the operator runs, and whether its "
    "watchNamespaces contain this namespace: `kubectl get pods -A -l "
    "app.kubernetes.io/part-of=llmservice`.",
)


@dataclass(frozen=True)
class Finding:
    """A condition, in the form: what is the case, and what to do."""

    type: str
    status: str
    reason: str
    message: str
    """The message without its advice."""
    next_step: str | None
    """What to change, or what to wait for; None if nothing."""
    since: str | None
    """Time since which the condition has this status."""


@dataclass(frozen=True)
class ReplicaState:
    """One pod with a model server."""

    name: str
    ready: bool
    state: str
    """Ready, Terminating, or the reason why the pod is not ready."""
    restarts: int
    created: str | None
    node: str | None


@dataclass(frozen=True)
class Slo:
    """Limits in milliseconds and percent, beside the last measured values."""

    met: bool | None
    objective_percent: int | None
    attainment_percent: int | None
    ttft_limit: int | None
    ttft_p95: int | None
    itl_limit: int | None
    itl_p95: int | None


@dataclass(frozen=True)
class Story:
    """The state of one service."""

    name: str
    namespace: str
    model: str
    url: str | None
    engine_version: str | None
    image: str | None
    is_current: bool
    """Whether the operator has handled the latest change of the spec."""
    ready: Finding
    others: tuple[Finding, ...]
    """Conditions about the load, the SLO and the router that say more than that all is well."""
    ready_replicas: str | None
    """Ready replicas out of the desired number, such as 1/2."""
    updated_replicas: int | None
    min_replicas: int | None
    max_replicas: int | None
    scaled_by: str | None
    """Component that changes the number of replicas."""
    metric: str | None
    """Metric of which `load` is the value and the target per replica."""
    load: str | None
    slo: Slo | None
    gpus: int | None
    dollars_per_hour: str | None
    dollars_per_gpu_hour: str | None
    router: str | None
    """Phase of the router and its ready pods, such as `Serving, 2/2 pods`."""
    decisions: tuple[Mapping[str, Any], ...]
    """The last decisions of the autoscaler, newest first, as the status has them."""
    recommendations: tuple[Mapping[str, Any], ...]
    replicas: tuple[ReplicaState, ...]


def tell_story(service: Manifest, pods: Iterable[Manifest]) -> Story:
    """Return the story of an LLMService and the pods of its replicas."""
    metadata, spec, status = service["metadata"], service["spec"], service.get("status", {})
    engine, cost = status.get("engine", {}), status.get("cost", {})
    scaling, autoscaling = status.get("autoscaling", {}), spec.get("autoscaling")
    limits = autoscaling or {}
    findings = [_finding(each, metadata["name"]) for each in status.get("conditions", [])]
    ready = next((each for each in findings if each.type == "Ready"), None)
    seen = status.get("observedGeneration", 0)
    return Story(
        name=metadata["name"],
        namespace=metadata["namespace"],
        model=spec["model"]["uri"],
        url=status.get("url"),
        engine_version=engine.get("version"),
        image=engine.get("image"),
        is_current=bool(seen) and seen >= metadata.get("generation", 0),
        ready=ready or Finding("Ready", "Unknown", "NotReported", *_UNSEEN, None),
        others=tuple(each for each in findings if _says_more(each)),
        ready_replicas=status.get("ready"),
        updated_replicas=status.get("updatedReplicas"),
        min_replicas=limits.get("minReplicas"),
        max_replicas=limits.get("maxReplicas"),
        scaled_by=scaling.get("provider"),
        metric=scaling.get("limitingMetric") or limits.get("metric"),
        load=scaling.get("load") if autoscaling is not None else None,
        slo=_slo(spec.get("slo"), status, findings),
        gpus=status.get("gpus"),
        dollars_per_hour=cost.get("perHour"),
        dollars_per_gpu_hour=cost.get("perGpuHour"),
        router=_router(status.get("router")),
        decisions=tuple(scaling.get("decisions", ())),
        recommendations=tuple(scaling.get("recommendations", ())),
        replicas=tuple(sorted(map(_replica, pods), key=lambda each: each.name)),
    )


def _finding(condition: Mapping[str, Any], name: str) -> Finding:
    reason, message = str(condition.get("reason", "")), str(condition.get("message", ""))
    known = Reason.named(reason)
    advice = known.advice(name) if known is not None else None
    if advice is not None:
        message = message.removesuffix(advice).rstrip()
        if known is not None and known.is_normal and advice == "Nothing.":
            advice = None
    return Finding(
        str(condition["type"]),
        str(condition["status"]),
        reason,
        message,
        advice,
        condition.get("lastTransitionTime"),
    )


def _says_more(finding: Finding) -> bool:
    known = Reason.named(finding.reason)
    return finding.type not in _OF_READY and (known is None or not known.is_normal)


def _slo(
    wanted: Mapping[str, Any] | None, status: Mapping[str, Any], findings: Iterable[Finding]
) -> Slo | None:
    if wanted is None:
        return None
    met = next((each.status for each in findings if each.type == "SLOMet"), "Unknown")
    measured = status.get("slo", {})
    return Slo(
        met={"True": True, "False": False}.get(met),
        objective_percent=wanted.get("objectivePercent"),
        attainment_percent=measured.get("attainmentPercent"),
        ttft_limit=wanted.get("ttftMilliseconds"),
        ttft_p95=measured.get("ttftP95"),
        itl_limit=wanted.get("itlMilliseconds"),
        itl_p95=measured.get("itlP95"),
    )


def _router(router: Mapping[str, Any] | None) -> str | None:
    if router is None:
        return None
    return f"{router['phase']}, {router.get('ready', '?')} pods ready"


def _replica(pod: Manifest) -> ReplicaState:
    metadata, status = pod["metadata"], pod.get("status", {})
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    containers = status.get("containerStatuses", [])
    is_ready = conditions.get("Ready", {}).get("status") == "True"
    is_ending = "deletionTimestamp" in metadata
    return ReplicaState(
        name=metadata["name"],
        ready=is_ready and not is_ending,
        state="Terminating" if is_ending else "Ready" if is_ready else _why(status, conditions),
        restarts=sum(each.get("restartCount", 0) for each in containers),
        created=metadata.get("creationTimestamp"),
        node=pod["spec"].get("nodeName"),
    )


def _why(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the reason why a pod is not ready, as Kubernetes names it."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason", "Unschedulable"))
    for each in status.get("containerStatuses", []):
        state = each.get("state", {})
        for kind in ("waiting", "terminated"):
            if kind in state:
                return str(state[kind].get("reason", kind))
    return str(
        status.get("reason")
        or ("NotReady" if status.get("containerStatuses") else status.get("phase", "Pending"))
    )
