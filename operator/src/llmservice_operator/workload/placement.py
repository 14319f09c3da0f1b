"""Scheduling of a service's pods, and the other fields that spec.template sets on them."""

from __future__ import annotations

from typing import Any

from llmservice_operator import names
from llmservice_operator.api.fields import Fields
from llmservice_operator.api.pods import Toleration
from llmservice_operator.api.scheduling import TopologySpreadConstraint
from llmservice_operator.api.spec import LLMService


def build_placement(service: LLMService, revision_label: str) -> dict[str, Any]:
    """Return the pod spec's fields for scheduling, runtime class and service account.

    Fields that are empty are left out. Spread constraints without a selector count the pods of each
    revision separately, by `revision_label`, so that the pods are also spread evenly after a
    rolling update.
    """
    template = service.spec.template
    fields = {
        "nodeSelector": dict(template.node_selector),
        "tolerations": [_toleration(each) for each in _tolerations(service)],
        "affinity": _as_written(template.affinity) if template.affinity else {},
        "topologySpreadConstraints": [
            _spread(service, each, revision_label) for each in template.topology_spread_constraints
        ],
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "schedulerName": template.scheduler_name,
        "serviceAccountName": template.service_account_name,
    }
    return {field: value for field, value in fields.items() if value}


def build_pod_metadata(service: LLMService) -> dict[str, Any]:
    """Return the pod template's metadata.

    Validation refuses user labels that the operator sets.
    """
    template = service.spec.template
    metadata: dict[str, Any] = {"labels": {**template.labels, **names.labels(service)}}
    if template.annotations:
        metadata["annotations"] = dict(template.annotations)
    return metadata


def _tolerations(service: LLMService) -> tuple[Toleration, ...]:
    """Return the tolerations of the spec and, for a GPU service, those for the taints of GPU nodes.

    Nodes with GPUs usually have a taint with the name of their GPU resource. The taint keeps pods
    that need no GPU off these nodes. Slices of a GPU have separate resource names, but their nodes
    have the taint of whole GPUs.
    """
    tolerations, accelerator = service.spec.template.tolerations, service.spec.accelerator
    if not service.spec.gpus:
        return tolerations
    resource, whole = accelerator.gpu_resource, accelerator.whole_gpu_resource
    is_slice = resource != whole and resource.partition("/")[0] == whole.partition("/")[0]
    taints = (resource, whole) if is_slice else (resource,)
    return *tolerations, *(
        Toleration(key=taint, operator="Exists", effect="NoSchedule")
        for taint in taints
        if not any(each.covers_every_taint_of(taint) for each in tolerations)
    )


def _toleration(toleration: Toleration) -> dict[str, Any]:
    written = _as_written(toleration)
    # The API server drops empty strings, so sending them would look like drift in every pass.
    return {field: value for field, value in written.items() if value != ""}


def _spread(
    service: LLMService, constraint: TopologySpreadConstraint, revision_label: str
) -> dict[str, Any]:
    written = _as_written(constraint)
    if constraint.label_selector is None:
        written["labelSelector"] = {"matchLabels": names.selector(service)}
        written["matchLabelKeys"] = [revision_label]
    return written


def _as_written(fields: Fields) -> dict[str, Any]:
    """Return the fields whose values differ from the defaults.

    An empty selector stays, because it selects everything.
    """
    return fields.model_dump(mode="json", by_alias=True, exclude_defaults=True)
