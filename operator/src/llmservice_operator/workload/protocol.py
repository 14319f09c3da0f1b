"""Interface to a kind of workload: an object that keeps replicas running."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.kinds import Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload.pin import EnginePin
from llmservice_operator.workload.pod_problems import Problem
from llmservice_operator.workload.replica import Replica
from llmservice_operator.workload.replica_count import ReplicaCount


@dataclass(frozen=True)
class WorkloadState:
    """The status of a live workload. Every number counts replicas, not pods.

    While the state is not current, `updated`, `revision`, `is_stuck` and `problems` are those of
    the earlier manifest.
    """

    desired: int
    """Replicas that the workload requests."""
    replicas: int
    """Replicas that exist, of the present pod template or an earlier one."""
    ready: int
    is_current: bool
    """Whether the workload's controller has seen the present manifest."""
    updated: int = 0
    """Replicas of the present pod template."""
    is_stuck: bool = False
    """Whether the rollout made no progress within its deadline."""
    revision: str | None = None
    """Revision of the present pod template, in the form of `Replica.revision`. Empty while the
    controller has not reported it. None for a controller that never reports it."""
    complete_revision: str | None = None
    """Revision of all pods, if the controller reports that the rollout of this revision is complete
    and a replica is ready. None otherwise. It is also valid while the state is not current."""
    problems: tuple[Problem, ...] = ()
    """Problems that keep the controller from creating pods."""
    refused_revision: Problem | None = None
    """Problem that keeps the controller from starting the rollout of a revision. It is also valid
    while the state is not current, because the controller reports that it has seen a manifest only
    after the start of the rollout."""
    refused_since: datetime | None = None
    """Time since which the API server refuses to create a pod. None while it refuses none."""


class Workload(Protocol):
    """One kind of workload. In every kind, `spec.replicas` is the number of replicas."""

    @property
    def kind(self) -> Kind: ...

    def runs(self, service: LLMService) -> bool:
        """Return whether a workload of this kind runs the service."""
        ...

    def made(self, pod: Manifest) -> bool:
        """Return whether a workload of this kind made the pod."""
        ...

    def name(self, service: LLMService) -> str:
        """Return the name of the service's workload."""
        ...

    def build_spec(
        self,
        service: LLMService,
        settings: OperatorSettings,
        pin: EnginePin,
        count: ReplicaCount,
    ) -> dict[str, Any]:
        """Build the spec of the workload.

        Raises InvalidSpec when the engine cannot be run as the spec requires.
        """
        ...

    def keep_spec(
        self, service: LLMService, count: ReplicaCount, applied: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Build the spec with the pods of `applied`, an earlier spec of the workload.

        It is used while `build_spec` raises InvalidSpec, and during a rollback. Raises KeyError if
        `applied` contains no pods.
        """
        ...

    def pods_of(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of the workload's spec from which its pods are made."""
        ...

    def kept_revision(self, service: LLMService, revision: str) -> tuple[Kind, str] | None:
        """Return kind and name of the object that keeps the pods of an earlier revision.

        None for a kind of workload that keeps no earlier revisions.
        """
        ...

    def pods_of_revision(self, kept: Manifest) -> Mapping[str, Any]:
        """Return the pods of an earlier revision, in the form of `pods_of`."""
        ...

    def state_of(self, live: Manifest) -> WorkloadState:
        """Read the state from a live workload."""
        ...

    def replicas_of(self, pods: Iterable[Manifest]) -> Iterable[Replica]:
        """Group pods of this kind of workload into replicas.

        Either none or all of the given pods have ended for good. Pods whose group contains no
        server pod are left out.
        """
        ...

    def pinned_image(self, live: Manifest) -> str | None:
        """Return the image of the model server in `live`: a live workload, or the object that keeps
        the pods of an earlier revision. None if `live` contains no model server.
        """
        ...

    def scale_reference(self, service: LLMService) -> dict[str, str]:
        """Return the reference by which an autoscaler finds the workload."""
        ...

    def server_selector(self, service: LLMService) -> Mapping[str, str]:
        """Return labels that select one pod of each replica: the one that runs the server."""
        ...
