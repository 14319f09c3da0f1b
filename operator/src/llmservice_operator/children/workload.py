"""The workload, which runs the model servers. Each kind of workload has its own declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.applied import applied_field
from llmservice_operator.workload import WORKLOADS, Workload, pin_annotations, workload_of


def declare(workload: Workload) -> Child:
    """Return the declaration of a kind of workload.

    A service has one workload, of one of these kinds.
    """

    def body(context: Context) -> Manifest | None:
        if workload_of(context.service) is not workload:
            return None
        return {
            "spec": workload.build_spec(
                context.service, context.settings, context.pin, context.replicas
            )
        }

    return Child(kind=workload.kind, body=body, name=workload.name, annotations=_annotations)


def _annotations(context: Context) -> Mapping[str, str]:
    return {**pin_annotations(context.pin), **context.replicas.annotations}


_BY_KIND: Final = {workload.kind: declare(workload) for workload in WORKLOADS}

CHILDREN: Final = tuple(_BY_KIND.values())


def keep_pods(context: Context, live: Manifest) -> Manifest | None:
    """Return the manifest of the live workload with its present pods.

    The manifest replaces one that cannot be built as the spec requires. The number of replicas and
    all other fields outside the pods follow the spec. Returns None if the operator has not applied
    any pods.
    """
    try:
        return return_pods(context, applied_field(live, "spec"))
    except (KeyError, TypeError, ValueError):
        return None


def return_pods(context: Context, applied: Mapping[str, Any]) -> Manifest:
    """Return the manifest of the workload with the pods of an applied spec.

    Raises KeyError, TypeError or ValueError if `applied` contains no pods.
    """
    spec = workload_of(context.service).keep_spec(context.service, context.replicas, applied)
    return workload_child(context.service).complete(context, {"spec": spec})


def workload_child(service: LLMService) -> Child:
    """Return the declaration of the service's workload."""
    return _BY_KIND[workload_of(service).kind]
