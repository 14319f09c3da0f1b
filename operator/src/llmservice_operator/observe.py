"""Live objects -> Observation: what the cluster made of a service, reduced to what we report.

Of everything that keeps a replica from being ready, the problem whose reason has the lowest rank is
reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.pod_problems import (
    Problem,
    condition,
    is_ready,
    pod_problems,
    quoted,
    with_hint,
)


@dataclass(frozen=True)
class LiveObjects:
    """What the API server holds for one service; None and empty mean: not there."""

    deployment: Manifest | None = None
    kubernetes_service: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    """Pods with the service's label."""
    report: LoadReport | None = None
    """What the model servers say about themselves; None without a metrics server."""


@dataclass(frozen=True)
class Observation:
    asked: int | None = None
    """Replicas that the Deployment asks for; None while there is none."""
    replicas: int = 0
    """Pods that exist, of this spec or an earlier one."""
    updated_replicas: int = 0
    """Pods of the present spec."""
    ready_replicas: int = 0
    """Pods that answer."""
    is_rolled_out: bool = False
    """Whether the Deployment controller saw the present Deployment and has nothing left to do."""
    is_stuck: bool = False
    """Whether the rollout made no progress within its deadline."""
    waits_for_accelerator_since: datetime | None = None
    """Since when a pod of the present spec finds no node with enough free accelerators."""
    not_ready_since: datetime | None = None
    """Since when the pod of the present spec that waits longest has not been ready."""
    has_loaded_model: bool = False
    """Whether a pod of the present spec is ready."""
    problem: Problem | None = None
    """The most useful thing to know about a replica that is not ready; None when all are, or when
    nothing hinders them and their containers do not run yet."""


def observe(service: LLMService, live: LiveObjects) -> Observation:
    """Reduce the live objects of one service."""
    if live.deployment is None:
        return Observation()
    status = live.deployment.get("status", {})
    generation = live.deployment["metadata"].get("generation", 0)
    if status.get("observedGeneration", 0) < generation:
        # The counts of the pods are still true, what they say about the present spec is not.
        return Observation(
            asked=live.deployment["spec"].get("replicas", 1),
            replicas=status.get("replicas", 0),
            ready_replicas=status.get("readyReplicas", 0),
        )
    replicas, updated, ready = (
        status.get(field, 0) for field in ("replicas", "updatedReplicas", "readyReplicas")
    )
    present = _newest_revision(live.pods) if updated else []
    unready = [pod for pod in present if not is_ready(pod)]
    told = {replica.pod: replica for replica in live.report.replicas} if live.report else {}
    progressing = condition(live.deployment, "Progressing")
    is_stuck = progressing.get("reason") == "ProgressDeadlineExceeded"
    problems = [
        *_deployment_problems(live.deployment, is_stuck),
        *(
            problem
            for pod in present
            for problem in pod_problems(service, pod, told.get(pod["metadata"]["name"]))
        ),
    ]
    return Observation(
        asked=live.deployment["spec"].get("replicas", 1),
        replicas=replicas,
        updated_replicas=updated,
        ready_replicas=ready,
        is_rolled_out=replicas == updated == ready == live.deployment["spec"].get("replicas", 1),
        is_stuck=is_stuck,
        waits_for_accelerator_since=min(_accelerator_waits(service, present), default=None),
        not_ready_since=min(map(_not_ready_since, unready), default=None),
        has_loaded_model=any(is_ready(pod) for pod in present),
        problem=min(problems, key=lambda each: (each.reason.rank, each.reason), default=None),
    )


def _not_ready_since(pod: Manifest) -> datetime:
    changed: str | None = condition(pod, "Ready").get("lastTransitionTime")
    return datetime.fromisoformat(changed or pod["metadata"]["creationTimestamp"])


def _newest_revision(pods: tuple[Manifest, ...]) -> list[Manifest]:
    """Return the living pods of the template that pods were last created from.

    The ReplicaSet of each pod is known by a label, the Deployment's present one by none.
    """
    living = [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and pod.get("status", {}).get("phase") not in ("Failed", "Succeeded")
    ]
    if not living:
        return []
    newest = max(living, key=_age_and_readiness)
    return [pod for pod in living if _template_hash(pod) == _template_hash(newest)]


def _age_and_readiness(pod: Manifest) -> tuple[str, bool]:
    # Of pods created within the same second the one that is not ready yet is likely the newer.
    return str(pod["metadata"].get("creationTimestamp", "")), not is_ready(pod)


def _template_hash(pod: Manifest) -> str | None:
    labels: Mapping[str, str] = pod["metadata"].get("labels", {})
    return labels.get("pod-template-hash")


def _deployment_problems(deployment: Manifest, is_stuck: bool) -> Iterator[Problem]:
    failure = condition(deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        said = quoted(failure.get("message"))
        if "exceeded quota" in said:
            said = f"A ResourceQuota of the namespace refuses the pod: {said}"
            yield with_hint(Reason.QUOTA_EXCEEDED, said)
        else:
            yield with_hint(Reason.POD_REFUSED, f"The API server refuses the pod: {said}")
    if is_stuck:
        reason = Reason.ROLLOUT_STUCK
        hint = reason.hint.replace("NAME", deployment["metadata"]["name"])
        yield Problem(reason, f"{reason.meaning} {hint}")


def _accelerator_waits(service: LLMService, pods: list[Manifest]) -> Iterator[datetime]:
    """Yield since when each pod waits that finds no accelerator."""
    for pod in pods:
        since = condition(pod, "PodScheduled").get("lastTransitionTime")
        problem = next(pod_problems(service, pod, None), None)
        if since and problem is not None and problem.reason is Reason.WAITING_FOR_GPU:
            yield datetime.fromisoformat(since)
