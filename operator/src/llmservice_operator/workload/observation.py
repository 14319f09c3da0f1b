"""Reduces live objects to an Observation: the state of one service, as far as it is reported.

Of all problems that keep a replica from being ready, the one whose reason has the lowest rank is
reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.workload.pod_problems import Problem, pod_problems
from llmservice_operator.workload.registry import replicas_of, workload_of
from llmservice_operator.workload.replica import Replica, condition


@dataclass(frozen=True)
class Observation:
    desired: int | None = None
    """Replicas that the workload requests; None while there is no workload."""
    replicas: int = 0
    """Replicas that exist, of this spec or an earlier one."""
    updated_replicas: int = 0
    """Replicas of the present spec."""
    ready_replicas: int = 0
    """Replicas that are ready."""
    is_rolled_out: bool = False
    """Whether the workload's controller has seen the present manifest and has nothing left to
    do."""
    is_stuck: bool = False
    """Whether the rollout made no progress within its deadline."""
    waits_for_accelerator_since: datetime | None = None
    """Time since which a pod of the present spec finds no node with enough free accelerators."""
    not_ready_since: datetime | None = None
    """Time since which the longest-waiting replica of the present spec has not been ready."""
    has_loaded_model: bool = False
    """Whether a replica of the present spec is ready."""
    problem: Problem | None = None
    """Most important problem of a replica that is not ready. None if all are ready, or if the
    others have no problem and their containers have not started yet."""


def observe_service(
    service: LLMService,
    live: Manifest | None,
    pods: Iterable[Manifest],
    report: LoadReport | None = None,
) -> Observation:
    """Reduce the live workload of a service and its pods.

    `report` is the load report of the metrics server; None while it does not answer.
    """
    if live is None:
        return Observation()
    state = workload_of(service).state_of(live)
    if not state.is_current:
        # The replica counts are still correct. The fields about the present spec are outdated.
        return Observation(
            desired=state.desired, replicas=state.replicas, ready_replicas=state.ready
        )
    present = _present(replicas_of(pods), state.revision) if state.updated else []
    found = list(_problems_of_pods(service, present, report))
    problems = [*state.problems, *(problem for _, problem in found)]
    if state.is_stuck:
        problems.append(_stuck(service))
    waits = (
        condition(pod, "PodScheduled").get("lastTransitionTime")
        for pod, problem in found
        if problem.reason is Reason.WAITING_FOR_GPU
    )
    unready = (replica.not_ready_since for replica in present)
    return Observation(
        desired=state.desired,
        replicas=state.replicas,
        updated_replicas=state.updated,
        ready_replicas=state.ready,
        is_rolled_out=state.replicas == state.updated == state.ready == state.desired,
        is_stuck=state.is_stuck,
        waits_for_accelerator_since=min(
            (datetime.fromisoformat(since) for since in waits if since), default=None
        ),
        not_ready_since=min((since for since in unready if since), default=None),
        has_loaded_model=any(replica.is_ready for replica in present),
        problem=min(problems, key=lambda each: (each.reason.rank, each.reason), default=None),
    )


def _present(replicas: Iterable[Replica], revision: str | None) -> list[Replica]:
    """Return the replicas of the present pod template that stay.

    The newest pod may be of an earlier template, because the pods of a drained node are created
    again during a rollout. The newest pod decides only where the workload's controller never names
    the present template.
    """
    staying = [replica for replica in replicas if not replica.is_leaving]
    if revision is None and staying:
        # If several were created in the same second, one that is not ready is likely the newer.
        revision = max(staying, key=lambda each: (each.created, not each.is_ready)).revision
    return [replica for replica in staying if replica.revision == revision]


def _problems_of_pods(
    service: LLMService, replicas: Iterable[Replica], report: LoadReport | None
) -> Iterator[tuple[Manifest, Problem]]:
    """Yield each pod that keeps its replica from being ready, with the reason."""
    loads = {each.pod: each for each in report.replicas} if report else {}
    for replica in replicas:
        for pod in replica.pods:
            load = loads.get(replica.name) if pod is replica.server else None
            for problem in pod_problems(service, pod, load):
                yield pod, problem


def _stuck(service: LLMService) -> Problem:
    reason = Reason.ROLLOUT_STUCK
    return Problem(reason, f"{reason.meaning} {reason.hint.replace('NAME', service.name)}")
