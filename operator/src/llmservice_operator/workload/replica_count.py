"""The number of replicas in the workload's manifest, and whether the operator sets it.

While autoscaling is on, our manifest does not contain the number, because sending it would undo
the changes of the autoscaler. Omitting the number must not reset it either. Server-side apply
removes a field that no manager sends any more, and the API server then sets 1. So before the first
manifest without the number, a second field manager of the operator takes the field over
(`is_handed_over`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.schedule import MAX_REPLICAS
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.comparison import owns_field
from llmservice_operator.desired.manifest import is_owned_by, may_change


@dataclass(frozen=True)
class ReplicaCount:
    sent: int | None
    """spec.replicas in our manifest of the workload. None leaves the number to the autoscaler."""
    annotations: Mapping[str, str]
    """Annotations of the workload that record the number."""
    is_kept_now: bool = False
    """Whether the number was just read from the live workload. The write then fails if the workload
    has changed since."""

    @property
    def fields(self) -> dict[str, int]:
        """Part of the workload's spec that sets the number. Empty if the autoscaler sets it."""
        return {} if self.sent is None else {"replicas": self.sent}


def resolve_replicas(service: LLMService, live: Manifest | None) -> ReplicaCount:
    """Return the number of replicas for the manifest: the number in the spec, or else the number at
    which autoscaling ended, or else 1. While autoscaling is on, the manifest contains no number.

    An object that the service adopts keeps its number. A suspended service has 0, and its workload
    records the number for the time after the suspension.
    """
    spec = service.spec
    live = live if live is not None and may_change(live, service) else None
    if spec.suspend:
        return _suspended(service, live)
    if spec.autoscaling is not None:
        return ReplicaCount(None, {})
    if spec.replicas is not None:
        return ReplicaCount(spec.replicas, {})
    if live is None:
        return ReplicaCount(1, {})
    recorded = _recorded(live)
    if recorded is not None:
        return _keeping(recorded)
    number, scaled_to = desired_replicas(live), _scaled_to(service)
    if scaled_to is not None:
        return _keeping(number or scaled_to, now=number > 0)
    if number > 1 and not is_owned_by(live, service):
        return _keeping(number, now=True)
    return ReplicaCount(1, {})


def _suspended(service: LLMService, live: Manifest | None) -> ReplicaCount:
    if service.spec.replicas is not None:
        return ReplicaCount(0, {})
    running = 0 if live is None else desired_replicas(live)
    recorded = None if live is None else _recorded(live)
    if service.spec.autoscaling is None and recorded is not None:
        before = recorded
    else:
        # The live number is newer than any recorded one.
        before = running or recorded or _scaled_to(service) or 0
    is_default = before == 1 and service.spec.autoscaling is None
    if before == 0 or is_default:
        return ReplicaCount(0, {})
    return replace(_keeping(before, now=running == before), sent=0)


def _recorded(live: Manifest) -> int | None:
    """Return the number that a live workload records. None if it records 0 or no valid number."""
    kept = (live["metadata"].get("annotations") or {}).get(names.KEPT_REPLICAS_ANNOTATION)
    # Any client may have written the annotation, and Python refuses to parse thousands of digits.
    if kept is None or not kept.isdecimal() or len(kept) > len(str(MAX_REPLICAS)):
        return None
    return int(kept) if 0 < int(kept) <= MAX_REPLICAS else None


def _scaled_to(service: LLMService) -> int | None:
    """Return the number that the load last required. None if it is not known."""
    autoscaling = service.status.autoscaling
    return autoscaling.desired_replicas or None if autoscaling is not None else None


def _keeping(number: int, *, now: bool = False) -> ReplicaCount:
    return ReplicaCount(number, {names.KEPT_REPLICAS_ANNOTATION: str(number)}, is_kept_now=now)


def desired_replicas(live: Manifest) -> int:
    """Return the number of replicas that a live workload requests."""
    number: int = live["spec"].get("replicas", 1)
    return number


def first_replicas(service: LLMService) -> int:
    """Return the number of replicas of a new workload.

    With autoscaling, it is the number that the load last required, or the minimum if that number is
    not known. The former applies after a user has deleted the workload. Without autoscaling, it is
    the number in the spec. While the service is suspended, it is 0.
    """
    autoscaling = service.spec.autoscaling
    if autoscaling is None or service.spec.suspend:
        return service.spec.desired_replicas
    return autoscaling.clamp(_scaled_to(service) or autoscaling.fewest_running)


def resumed_replicas(service: LLMService, live: Manifest) -> int:
    """Return the number of replicas of a live workload when an autoscaler takes it over.

    An HPA does not change 0, so a suspended service returns to its earlier number.
    """
    recorded, autoscaling = _recorded(live), service.spec.autoscaling
    if recorded is not None and autoscaling is not None:
        recorded = autoscaling.clamp(recorded)
    return desired_replicas(live) or recorded or first_replicas(service)


def is_handed_over(service: LLMService, live: Manifest) -> bool:
    """Return whether the operator may apply its manifest without resetting the live number.

    That is the case if the manifest sets spec.replicas, or if the operator's field manager does not
    own that field.
    """
    spec = service.spec
    is_ours = spec.autoscaling is None or spec.suspend
    return is_ours or not owns_field(live, "spec", "replicas")


def build_hand_over(live: Manifest, replicas: int) -> dict[str, Any]:
    """Build the manifest of the second field manager, which sets only the number of replicas.

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
