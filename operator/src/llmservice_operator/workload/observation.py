"""Reduces live objects to an Observation: the facts about one service that the operator acts on.

Of all problems that keep a replica from being ready, the one whose reason has the lowest rank is
reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reason_facts import in_commands
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.workload.ended_pods import ended_problem
from llmservice_operator.workload.pod_problems import Problem, pod_problems
from llmservice_operator.workload.protocol import WorkloadState
from llmservice_operator.workload.refused_pods import fits_after_one_ends
from llmservice_operator.workload.registry import group, replicas_of, workload_of
from llmservice_operator.workload.replica import Replica, condition, is_over
from llmservice_operator.workload.unstarted_pods import (
    LOOK_AGAIN_SECONDS,
    PodEvent,
    look_again_seconds,
    overdue_problem,
    unstarted_problem,
)


@dataclass(frozen=True)
class Observation:
    desired: int | None = None
    """Replicas that the workload requests. None while there is no workload."""
    replicas: int = 0
    """Replicas that exist, of this spec or an earlier one."""
    updated_replicas: int = 0
    """Replicas of the present spec."""
    ready_replicas: int = 0
    """Replicas that are ready."""
    is_rolled_out: bool = False
    """Whether the workload's controller has seen the present manifest and has completed its
    rollout."""
    is_stuck: bool = False
    """Whether the rollout made no progress within its deadline."""
    revision: str | None = None
    """Revision of the present pods. Empty or None while it is unknown."""
    complete_revision: str | None = None
    """Revision of a rollout that is complete now: of the present pods, or of earlier ones while the
    controller has not seen the present manifest. None if no rollout is complete, or if its revision
    is unknown."""
    waits_for_accelerator_since: datetime | None = None
    """Time since which a pod of the present spec finds no node with enough free accelerators or
    other devices."""
    waits_for_volume_since: datetime | None = None
    """Time since which a pod of the present spec waits on its node for a volume that is mounted by
    another node."""
    waits_for_quota_since: datetime | None = None
    """Time since which a quota refuses a new pod that would fit in place of an old one."""
    not_ready_since: datetime | None = None
    """Time since which the longest-waiting replica of the present spec has not been ready."""
    has_loaded_model: bool = False
    """Whether a replica of the present spec is ready."""
    look_again_seconds: float | None = None
    """Seconds until a problem may begin or end without an event. None if only an event can change
    it."""
    problem: Problem | None = None
    """Most important problem of the workload or of a replica that is not ready. None without a
    problem, for example while containers are being created."""


def observe_service(
    service: LLMService,
    live: Manifest | None,
    pods: Iterable[Manifest],
    report: LoadReport | None = None,
    now: datetime | None = None,
    events: Mapping[str, Sequence[PodEvent]] = MappingProxyType({}),
) -> Observation:
    """Return the observation of a service, reduced from its live workload and pods.

    `report` contains the reports of the model servers. None while no metrics server answers.
    `events` is a mapping from the name of a pod that does not start to the Events about it, the
    newest last. Without `now`, everything that depends on the time is left out.
    """
    if live is None:
        return Observation()
    state = workload_of(service).state_of(live)
    if not state.is_current:
        # The replica counts are still true. The fields about the present spec are outdated.
        return Observation(
            desired=state.desired,
            replicas=state.replicas,
            ready_replicas=state.ready,
            complete_revision=state.complete_revision,
            problem=_in_commands(service, state.refused_revision),
        )
    pods = list(pods)
    replicas = replicas_of(pods)
    present = _present(replicas, state.revision) if state.updated else []
    found = list(_problems_of_pods(service, present, report, now, events))
    problems = [*state.problems, *(problem for _, problem in found)]
    blocking = _leaving(pods) if state.desired and not state.updated else []
    ended = None
    if now is not None:
        ended = ended_problem(_ended_pods(pods, state.revision), now)
        ended = ended or overdue_problem(blocking, now)
    problems += [each for each in (ended, state.refused_revision) if each is not None]
    if state.is_stuck:
        problems.append(_stuck())
    unready = (replica.not_ready_since for replica in present)
    problem = min(problems, key=lambda each: (each.reason.rank, each.reason), default=None)
    return Observation(
        desired=state.desired,
        replicas=state.replicas,
        updated_replicas=state.updated,
        ready_replicas=state.ready,
        is_rolled_out=state.replicas == state.updated == state.ready == state.desired,
        is_stuck=state.is_stuck,
        revision=state.revision,
        complete_revision=state.complete_revision,
        waits_for_accelerator_since=_since(
            found, Reason.WAITING_FOR_GPU, Reason.WAITING_FOR_DEVICE
        ),
        waits_for_volume_since=_since(found, Reason.VOLUME_IN_USE),
        waits_for_quota_since=_waits_for_quota_since(state, replicas, present),
        not_ready_since=min((since for since in unready if since), default=None),
        has_loaded_model=any(replica.is_ready for replica in present),
        problem=_in_commands(service, problem),
        look_again_seconds=_look_again_seconds(
            [*blocking, *(pod for each in present for pod in each.pods)], ended, now
        ),
    )


def _in_commands(service: LLMService, problem: Problem | None) -> Problem | None:
    """Return the problem, with the service's name inserted into the commands of its message."""
    if problem is None:
        return None
    return Problem(problem.reason, in_commands(service.name, problem.message))


def _leaving(pods: Iterable[Manifest]) -> list[Manifest]:
    """Return the pods that are being deleted. A Deployment of type Recreate waits for their end."""
    return [pod for pod in pods if "deletionTimestamp" in pod["metadata"]]


def _look_again_seconds(
    pods: Iterable[Manifest], ended: Problem | None, now: datetime | None
) -> float | None:
    """Return the seconds until the problem may change without an event."""
    if now is None:
        return None
    if ended is not None:
        return LOOK_AGAIN_SECONDS
    return look_again_seconds(pods, now)


def _since(found: Iterable[tuple[Manifest, Problem]], *reasons: Reason) -> datetime | None:
    """Return the time since which the first of the pods with one of these reasons has waited.

    A pod has waited since the last change of its condition PodScheduled.
    """
    since = (
        condition(pod, "PodScheduled").get("lastTransitionTime")
        for pod, problem in found
        if problem.reason in reasons
    )
    return min((datetime.fromisoformat(each) for each in since if each), default=None)


def _waits_for_quota_since(
    state: WorkloadState, replicas: Iterable[Replica], present: Iterable[Replica]
) -> datetime | None:
    """Return the time since which a quota refuses a new pod that it would accept after an old one
    has ended.
    """
    old = [
        pod
        for replica in replicas
        if not replica.is_leaving and replica not in present
        for pod in replica.pods
    ]
    refused = (each for each in state.problems if each.reason is Reason.QUOTA_EXCEEDED)
    return (
        state.refused_since
        if any(fits_after_one_ends(each.message, old) for each in refused)
        else None
    )


def _ended_pods(pods: Iterable[Manifest], revision: str | None) -> Iterator[Manifest]:
    """Yield the pods of the present template that have ended for good."""
    over = [pod for pod in pods if is_over(pod) and "deletionTimestamp" not in pod["metadata"]]
    for replica in group(over):
        if revision is None or replica.revision == revision:
            yield from replica.pods


def _present(replicas: Iterable[Replica], revision: str | None) -> list[Replica]:
    """Return the replicas of the present pod template that are not being deleted.

    The newest pod may be of an earlier template, because the pods of a drained node are created
    again during a rollout. So the newest pod decides only if the workload does not report the
    present template.
    """
    staying = [replica for replica in replicas if not replica.is_leaving]
    if revision is None and staying:
        # Of several replicas created in the same second, one that is not ready is likely the
        # newest.
        revision = max(staying, key=lambda each: (each.created, not each.is_ready)).revision
    return [replica for replica in staying if replica.revision == revision]


def _problems_of_pods(
    service: LLMService,
    replicas: Iterable[Replica],
    report: LoadReport | None,
    now: datetime | None,
    events: Mapping[str, Sequence[PodEvent]],
) -> Iterator[tuple[Manifest, Problem]]:
    """Yield each pod that keeps its replica from being ready, with its problem."""
    loads = {each.pod: each for each in report.replicas} if report else {}
    for replica in replicas:
        for pod in replica.pods:
            load = loads.get(replica.name) if pod is replica.server else None
            for problem in pod_problems(service, pod, load):
                yield pod, problem
            told = events.get(pod["metadata"]["name"], ())
            unstarted = None if now is None else unstarted_problem(pod, told, now)
            if unstarted is not None:
                yield pod, unstarted


def _stuck() -> Problem:
    reason = Reason.ROLLOUT_STUCK
    return Problem(reason, f"{reason.meaning} {reason.hint}")
