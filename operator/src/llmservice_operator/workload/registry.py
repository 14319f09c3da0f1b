"""Lists the kinds of workload, and finds the kind of a service or of a pod."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.workload.deployment import DEPLOYMENT
from llmservice_operator.workload.protocol import Workload
from llmservice_operator.workload.replica import Replica, is_over

WORKLOADS: Final[tuple[Workload, ...]] = (DEPLOYMENT,)
"""Every kind of workload. The first kind that fits a service or a pod is used. The last kind fits
all of them."""


def workload_of(service: LLMService) -> Workload:
    """Return the kind of workload that runs the service."""
    return next(each for each in WORKLOADS if each.runs(service))


def replicas_of(pods: Iterable[Manifest]) -> list[Replica]:
    """Group the pods of one service into replicas. Pods that have ended for good are left out."""
    return group(pod for pod in pods if not is_over(pod))


def group(pods: Iterable[Manifest]) -> list[Replica]:
    """Group pods of one service by the replica to which they belong.

    A service may have pods of two kinds of workload: those of the present kind and, while they
    terminate, those of an earlier kind. So each pod itself shows which kind made it.
    """
    pods_by_kind = defaultdict[int, list[Manifest]](list)
    for pod in pods:
        number = next(number for number, each in enumerate(WORKLOADS) if each.made(pod))
        pods_by_kind[number].append(pod)
    return [
        replica
        for number, workload in enumerate(WORKLOADS)
        for replica in workload.replicas_of(pods_by_kind[number])
    ]
