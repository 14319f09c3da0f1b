"""Builds the children of a service, even if its pods cannot be built from its spec or have failed.

Pods that cannot be built stay unchanged, and all other children follow the spec. For example, a
downgraded operator may not know the engine version of a service. It still scales the service and
applies its NetworkPolicy. After a failed rollout, only the pods return to an earlier revision.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Child, Context, build_each, workload_child
from llmservice_operator.children.workload import keep_pods, return_pods
from llmservice_operator.desired import Autoscaler, may_change, with_defaults
from llmservice_operator.desired.adapters import AdapterList
from llmservice_operator.desired.router import RouterDecision
from llmservice_operator.errors import InvalidSpec, OperatorError
from llmservice_operator.kinds import Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import (
    EnginePin,
    ReplicaCount,
    Restored,
    digest_of,
    recorded_pin,
    resolve_pin,
    resolve_replicas,
)


@dataclass(frozen=True)
class Attempt:
    pin: EnginePin
    replicas: ReplicaCount
    children: dict[Child, Manifest | OperatorError]
    """Manifests to write, in order. A child that stays unchanged has an error in place of a
    manifest."""
    unbuilt: InvalidSpec | None
    """Error because of which the manifest of the workload keeps the live pods. None if the manifest
    contains other pods. Also None without a manifest: `children` then contains the error."""
    pods: str | None = None
    """Digest of the pods that the spec requires; None if they cannot be built."""


def build_around_pods(
    service: LLMService,
    live: Manifest | None,
    settings: OperatorSettings,
    autoscaler: Autoscaler,
    served: Container[Kind],
    adapters: AdapterList | None = None,
    router: RouterDecision | None = None,
    restored: Restored | None = None,
) -> Attempt:
    """Build the children. If the pods cannot be built, keep those of the live workload.

    `restored` contains the pods of an earlier revision. They replace the pods of the spec if,
    according to the status, the rollout of the spec's pods has failed.

    Raises InvalidSpec if the engine or the accelerator of the spec is not valid, and there is no
    live workload whose pods and recorded engine could be kept. No child is built then.
    """
    kept = live if live is not None and may_change(live, service) else None
    replicas = resolve_replicas(service, live)
    try:
        pin = resolve_pin(service, live, settings)
        context = Context.of(service, settings, pin, replicas, autoscaler, adapters, router)
    except InvalidSpec as error:
        recorded = recorded_pin(service, live)
        if kept is None or recorded is None:
            raise
        # The settings of the accelerator class are left out, because the class may be unknown. Only
        # the pods use them.
        defaulted = with_defaults(service, settings.server_defaults)
        context = Context(
            defaulted,
            settings,
            recorded,
            replicas,
            autoscaler,
            adapters,
            router or RouterDecision.settled(service, settings),
        )
        unbuilt = error
        children = _build(context, served)
    else:
        children = _build(context, served)
        child = workload_child(service)
        found = children.get(child)
        if not isinstance(found, InvalidSpec):
            pods = None if not isinstance(found, Mapping) else digest_of(service, found["spec"])
            rollback = service.status.rollback
            if restored is not None and rollback is not None and rollback.failed_pods == pods:
                pin = restored.pin
                children[child] = return_pods(replace(context, pin=pin), restored.spec)
            return Attempt(pin, replicas, children, None, pods)
        unbuilt = found
    # The pods stay unchanged, so the status keeps the recorded engine.
    context = replace(context, pin=recorded_pin(service, live) or context.pin)
    manifest = None if kept is None else keep_pods(context, kept)
    if manifest is None:
        children[workload_child(service)] = unbuilt
        return Attempt(context.pin, replicas, children, None)
    children[workload_child(service)] = manifest
    return Attempt(context.pin, replicas, children, unbuilt)


def _build(context: Context, served: Container[Kind]) -> dict[Child, Manifest | OperatorError]:
    return {**build_each(context, served)}
