"""The number of replicas in the workload's manifest, and whether the operator sets it.

While autoscaling is on, our manifest does not contain the number, because sending one would undo
the autoscaler's. Omitting it must not lose it either. Server-side apply removes a field that no
manager sends any more, and the API server then sets 1. So before the first manifest without the
number, a second field manager of the operator takes it over (`is_handed_over`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.comparison import owns_field
from llmservice_operator.desired.manifest import is_owned_by


@dataclass(frozen=True)
class ReplicaCount:
    sent: int | None
    """spec.replicas in our manifest of the workload; None leaves it to the autoscaler."""
    annotations: Mapping[str, str]
    """Annotations of the workload that record the number."""
    is_kept_now: bool = False
    """Whether `sent` was read from the live workload just now. It must not have changed since."""

    @property
    def fields(self) -> dict[str, int]:
        """Part of the workload's spec that sets the number; empty if the autoscaler sets it."""
        return {} if self.sent is None else {"replicas": self.sent}


def resolve_replicas(service: LLMService, live: Manifest | None) -> ReplicaCount:
    """Return the number of the spec; without one, the number at which autoscaling ended."""
    replicas = _resolve(service, live)
    return replace(replicas, sent=0) if service.spec.suspend else replicas


def _resolve(service: LLMService, live: Manifest | None) -> ReplicaCount:
    spec = service.spec
    if spec.autoscaling is not None:
        return ReplicaCount(None, {})
    if spec.replicas is not None:
        return ReplicaCount(spec.replicas, {})
    if live is None or not is_owned_by(live, service):
        return ReplicaCount(1, {})
    kept = live["metadata"].get("annotations", {}).get(names.KEPT_REPLICAS_ANNOTATION)
    if kept is not None and kept.isdecimal():
        return _keeping(int(kept))
    if service.status.autoscaling is not None and service.status.autoscaling.desired_replicas:
        return _keeping(desired_replicas(live), now=True)
    return ReplicaCount(1, {})


def _keeping(number: int, *, now: bool = False) -> ReplicaCount:
    return ReplicaCount(number, {names.KEPT_REPLICAS_ANNOTATION: str(number)}, is_kept_now=now)


def desired_replicas(live: Manifest) -> int:
    """Return the number of replicas that a live workload requests."""
    number: int = live["spec"].get("replicas", 1)
    return number


def first_replicas(service: LLMService) -> int:
    """Return the number of replicas with which a new workload of an autoscaled service
    begins.

    It is the last known number, in case a user deleted the workload.
    """
    autoscaling, status = service.spec.autoscaling, service.status.autoscaling
    if autoscaling is None or service.spec.suspend:
        return service.spec.desired_replicas
    before = None if status is None else status.desired_replicas
    return autoscaling.clamp(before or autoscaling.min_replicas)


def is_handed_over(service: LLMService, live: Manifest) -> bool:
    """Return whether the live number stays when a manifest without spec.replicas is applied."""
    spec = service.spec
    is_ours = spec.autoscaling is None or spec.suspend
    return is_ours or not owns_field(live, "spec", "replicas")


def build_hand_over(live: Manifest, replicas: int) -> dict[str, Any]:
    """Build the manifest of the second field manager: the number alone.

    The apply fails when the workload has changed since it was read.
    """
    metadata = live["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion")
    return {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "metadata": {key: metadata[key] for key in kept},
        "spec": {"replicas": replicas},
    }
