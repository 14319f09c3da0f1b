"""Live objects -> Observation: what the cluster made of a service, reduced to what we report."""

from __future__ import annotations

from dataclasses import dataclass

from llmservice_operator.api import Manifest
from llmservice_operator.api.conditions import Reason
from llmservice_operator.api.spec import LLMService


@dataclass(frozen=True)
class LiveObjects:
    """What the API server holds for one service; None and empty mean: not there."""

    deployment: Manifest | None = None
    kubernetes_service: Manifest | None = None
    pods: tuple[Manifest, ...] = ()
    """Pods with the service's label."""


@dataclass(frozen=True)
class Problem:
    """The most useful thing to know about what keeps replicas from being ready."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Observation:
    replicas: int = 0
    """Pods that exist, of this spec or an earlier one."""
    updated_replicas: int = 0
    """Pods of the present spec."""
    ready_replicas: int = 0
    """Pods that answer."""
    is_rolled_out: bool = False
    """Whether the Deployment controller saw the present Deployment and has nothing left to do."""
    problem: Problem | None = None


def observe(service: LLMService, live: LiveObjects) -> Observation:
    """Reduce the live objects of one service."""
    raise NotImplementedError(service, live)
