"""Common metadata of all children: owner and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmservice_operator import api, names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.comparison import owned_fields


def build_metadata(
    service: LLMService, name: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata of a child, owned by the service so that both are deleted together.

    Labels and annotations of the operator and of the child override those of the spec. A service
    that was never in a cluster has no uid, and its children have no owner.
    """
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": service.namespace,
        "labels": {**service.spec.object_metadata.labels, **names.labels(service)},
    }
    if annotations := {**service.spec.object_metadata.annotations, **(annotations or {})}:
        metadata["annotations"] = annotations
    if service.uid:
        metadata["ownerReferences"] = [_owner_reference(service)]
    return metadata


def _owner_reference(service: LLMService) -> dict[str, Any]:
    return {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned_by(live: Manifest, service: LLMService) -> bool:
    """Return whether the live object's controller is this very service.

    A service that was deleted and created again has another uid, so it is a different owner.
    """
    return is_controlled_by(live, service.uid)


def is_controlled_by(live: Manifest, uid: str | None) -> bool:
    """Return whether the live object's controller is the object with this uid."""
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("uid") == uid for owner in owners)


def is_left_to(live: Manifest, service: LLMService) -> bool:
    """Return whether the live object has no controller and carries the service's labels.

    In this case, a service of this name was deleted with `--cascade=orphan`, or a client removed
    the owner reference. The service adopts the object and applies its own manifest to it. An
    adopted workload keeps its image. It also keeps its number of replicas if the spec sets none.
    """
    labels = live.get("metadata", {}).get("labels") or {}
    ours = {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, **names.selector(service)}
    return not _has_controller(live) and ours.items() <= labels.items()


def was_made_by_operator(live: Manifest) -> bool:
    """Return whether the operator has applied the live object, and no controller owns it."""
    return not _has_controller(live) and owned_fields(live, None) is not None


def may_change(live: Manifest, service: LLMService) -> bool:
    """Return whether the service owns the live object or may adopt it."""
    return is_owned_by(live, service) or is_left_to(live, service)


def _has_controller(live: Manifest) -> bool:
    owners = live.get("metadata", {}).get("ownerReferences") or ()
    return any(owner.get("controller") for owner in owners)
