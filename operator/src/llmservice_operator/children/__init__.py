"""The children: every object that an LLMService has, each declared in its own module.

`CHILDREN` is the only list of them. The declarations determine which objects are built, printed,
applied, pruned and watched. They also determine the order, the owners and the operator's rights.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.children import (
    adapter_list,
    cache_claim,
    horizontal_pod_autoscaler,
    http_route,
    inference_pool,
    kubernetes_service,
    network_policy,
    pod_disruption_budget,
    router_deployment,
    router_disruption_budget,
    router_network_policy,
    router_services,
    scaled_object,
    workload,
)
from llmservice_operator.children.child import Child, Context, Grant
from llmservice_operator.children.workload import workload_child
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import LLMSERVICES, PODS, Kind
from llmservice_operator.settings import OperatorSettings

__all__ = [
    "CHILDREN",
    "REQUIRED_KINDS",
    "Child",
    "Context",
    "Grant",
    "build_all",
    "build_each",
    "optional_kinds",
    "workload_child",
]

CHILDREN: Final[tuple[Child, ...]] = (
    # The NetworkPolicies are first, so that they protect each pod from the start if their writes
    # succeed.
    network_policy.CHILD,
    router_network_policy.CHILD,
    # The list of adapters is applied before the workload, because the pods mount it.
    adapter_list.CHILD,
    *workload.CHILDREN,
    *router_services.CHILDREN,
    router_deployment.CHILD,
    kubernetes_service.CHILD,
    *inference_pool.CHILDREN,
    http_route.CHILD,
    horizontal_pod_autoscaler.CHILD,
    scaled_object.CHILD,
    pod_disruption_budget.CHILD,
    router_disruption_budget.CHILD,
    # The claim is last, because a claim that the API server refuses must not delay other objects.
    cache_claim.CHILD,
)
"""The declarations, in the order in which their objects are applied."""

REQUIRED_KINDS: Final[tuple[Kind, ...]] = (
    LLMSERVICES,
    *dict.fromkeys(child.kind for child in CHILDREN if not child.is_optional_api),
    PODS,
)
"""Kinds that the operator needs in order to work. It watches all of them."""


def optional_kinds(settings: OperatorSettings) -> dict[Kind, bool]:
    """Return the kinds that a cluster may lack, and whether the operator has the rights on each."""
    return {
        child.kind: child.grant is None or child.grant.is_given(settings)
        for child in CHILDREN
        if child.is_optional_api
    }


def build_all(context: Context) -> list[Manifest]:
    """Return every object of the service in the order in which they are applied, as if the cluster
    served every kind.

    Raises InvalidSpec when an object cannot be built as the spec requires.
    """
    built = []
    for manifest in build_each(context, {child.kind for child in CHILDREN}).values():
        if isinstance(manifest, InvalidSpec):
            raise manifest
        built.append(manifest)
    return built


def build_each(context: Context, served: Container[Kind]) -> dict[Child, Manifest | InvalidSpec]:
    """Return a mapping from the declaration of each served kind to its object.

    The objects are in the order in which they are applied. In place of an object that cannot be
    built as the spec requires, the mapping contains the error.
    """
    built: dict[Child, Manifest | InvalidSpec] = {}
    for child in CHILDREN:
        if child.kind not in served:
            continue
        try:
            manifest = child.build(context)
        except InvalidSpec as error:
            built[child] = error
        else:
            if manifest is not None:
                built[child] = manifest
    return built
