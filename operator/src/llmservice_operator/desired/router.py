"""Decides whether a service has a router, and whether clients reach it or the replicas directly.

A switch between the two has phases, because connections that were opened before the switch continue
for some time. The status records the phase and its start, so the decision survives a restart of the
operator. If the record is lost, the phase starts again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.router import RouterMode
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RouterPhase, RouterStatus
from llmservice_operator.desired.environment import request_timeout_seconds
from llmservice_operator.settings import OperatorSettings

POLICY_SECONDS: Final = 10.0
"""Time in seconds until every node is assumed to enforce a changed NetworkPolicy. It is an
estimate."""
SELECTOR_SECONDS: Final = 10.0
"""Time in seconds until every node is assumed to use a changed selector of a Service object. It is
an estimate."""
EXIT_SECONDS: Final = 15
"""Time in seconds that the processes of a router pod have to exit after their last request."""
LONGEST_DRAIN_SECONDS: Final = 86_400
"""Longest time in seconds for which a router pod completes requests before it ends."""
UNLIMITED_REQUEST_SECONDS: Final = 3600
"""Assumed duration in seconds of the longest request of a service without a limit."""


@dataclass(frozen=True)
class RouterDecision:
    """The state of a service's router in one pass."""

    exists: bool = False
    """Whether the service has the objects of a router."""
    pods: int = 0
    """Number of router pods that should run."""
    takes_requests: bool = False
    """Whether the Service object selects the router pods instead of the replicas."""
    is_only_client: bool = False
    """Whether the router pods are the only clients of the replicas."""
    mode: RouterMode = RouterMode.PROXY
    """Mode of the router pods that exist."""
    serves_pool: bool = False
    """Whether Gateways can use the InferencePool."""
    status: RouterStatus | None = None
    """Record of the phase. None without a router, and for the settled router of a service that was
    never in a cluster."""
    requeue_after_seconds: float | None = None
    """Seconds after which the decision changes without an event. None if it does not."""

    @classmethod
    def settled(cls, service: LLMService, settings: OperatorSettings) -> RouterDecision:
        """Return the state that a new service reaches."""
        if not is_router_wanted(service, settings):
            return cls()
        mode = service.spec.router_settings.mode
        is_proxy = mode is RouterMode.PROXY
        return cls(
            exists=True,
            pods=_pods(service),
            takes_requests=is_proxy,
            is_only_client=is_proxy,
            mode=mode,
            serves_pool=not is_proxy,
        )

    @property
    def has_pool(self) -> bool:
        """Whether the router pods answer Gateways."""
        return self.exists and self.mode is RouterMode.INFERENCE_POOL


NO_ROUTER: Final = RouterDecision()


def is_router_wanted(service: LLMService, settings: OperatorSettings) -> bool:
    """Return whether the service should have a router.

    If the spec does not say, a service that has a router keeps it, because its removal would close
    connections.
    """
    spec, recorded = service.spec, service.status.router
    if spec.router_settings.enabled is not None:
        return spec.router_settings.enabled
    if spec.least_allowed_replicas == 0:
        return True  # requests wait in it while the service has no replicas
    if recorded is not None and recorded.phase is not RouterPhase.STOPPING:
        return True
    is_requested = (
        spec.service.tls is not None
        or (spec.auth is not None and spec.auth.limits is not None)
        or spec.router_settings.mode is RouterMode.INFERENCE_POOL
    )
    return is_requested or (settings.router_by_default and spec.most_replicas > 1)


def decide_router(
    service: LLMService, settings: OperatorSettings, live: Manifest | None, now: datetime
) -> RouterDecision:
    """Decide from the recorded phase and the router's live Deployment.

    `live` is None if the service owns no Deployment of a router.
    """
    recorded, mode = service.status.router, service.spec.router_settings.mode
    present = mode if live is None else _mode_of(live)
    # The pods of one mode end before those of another mode start. A router that stops for another
    # mode is still wanted, unless the spec says that it is not.
    is_switching = present is not mode and service.spec.router_settings.enabled is None
    is_wanted = is_switching or is_router_wanted(service, settings)
    if is_wanted and present is mode:
        return _run(service, recorded, live, now)
    is_starting = recorded is not None and recorded.phase is RouterPhase.STARTING
    if live is None or is_starting:
        decision = NO_ROUTER  # no client has reached the router
    else:
        decision = _stop(service, recorded, live, now, present)
    if decision.exists or not is_wanted:
        return decision
    # The record tells the next pass that the router is wanted.
    begun = (
        recorded if is_starting else RouterStatus(phase=RouterPhase.STARTING, since=timestamp(now))
    )
    return replace(decision, status=begun)


def _run(
    service: LLMService, recorded: RouterStatus | None, live: Manifest | None, now: datetime
) -> RouterDecision:
    phase, since = RouterPhase.STARTING, now
    if recorded is not None and recorded.phase is not RouterPhase.STOPPING:
        phase, since = recorded.phase, datetime.fromisoformat(recorded.since)
    # With TLS, clients never reach the replicas, which speak plain HTTP.
    may_serve = _are_all_ready(live) or service.spec.service.tls is not None
    if phase is RouterPhase.STARTING and may_serve:
        phase, since = RouterPhase.SERVING, now
    pods = _pods(service)
    status = RouterStatus(
        phase=phase, since=timestamp(since), ready=f"{ready_router_pods(live)}/{pods}"
    )
    mode = service.spec.router_settings.mode
    if phase is RouterPhase.STARTING or mode is RouterMode.INFERENCE_POOL:
        is_serving = phase is RouterPhase.SERVING
        return RouterDecision(
            exists=True, pods=pods, status=status, mode=mode, serves_pool=is_serving
        )
    left = _longest_request_seconds(service) - (now - since).total_seconds()
    return RouterDecision(
        exists=True,
        pods=pods,
        takes_requests=True,
        is_only_client=left <= 0,
        status=status,
        requeue_after_seconds=left if left > 0 else None,
    )


def _stop(
    service: LLMService,
    recorded: RouterStatus | None,
    live: Manifest,
    now: datetime,
    mode: RouterMode,
) -> RouterDecision:
    since = now
    if recorded is not None and recorded.phase is RouterPhase.STOPPING:
        since = datetime.fromisoformat(recorded.since)
    age = (now - since).total_seconds()
    # Until every node lets all clients reach the replicas, ready router pods take all requests.
    is_proxy = mode is RouterMode.PROXY
    until_moved = POLICY_SECONDS if is_proxy and ready_router_pods(live) else 0.0
    # Until every node knows the new selector, the router pods still get new connections.
    until_ended = until_moved + SELECTOR_SECONDS
    # While the pods complete their requests, they need their NetworkPolicy and their addresses.
    until_removed = until_ended + router_grace_seconds(service)
    if age >= until_removed:
        return NO_ROUTER
    return RouterDecision(
        exists=True,
        pods=_pods(service) if age < until_ended else 0,
        takes_requests=age < until_moved,
        mode=mode,
        status=RouterStatus(phase=RouterPhase.STOPPING, since=timestamp(since)),
        requeue_after_seconds=min(
            each - age for each in (until_moved, until_ended, until_removed) if each > age
        ),
    )


def router_drain_seconds(service: LLMService) -> int:
    """Return the seconds that a router pod has to complete its requests before it ends.

    A request may wait in the router first, and then take as long as the longest request.
    """
    waits = service.spec.router_settings.hold_timeout_seconds
    return min(waits + _longest_request_seconds(service), LONGEST_DRAIN_SECONDS)


def router_grace_seconds(service: LLMService) -> int:
    """Return the seconds after which a router pod that ends is killed."""
    accepts = service.spec.termination.pre_stop_seconds
    return accepts + router_drain_seconds(service) + EXIT_SECONDS


def _longest_request_seconds(service: LLMService) -> int:
    """Return the seconds after which all requests that are open now have ended."""
    return request_timeout_seconds(service.spec) or UNLIMITED_REQUEST_SECONDS


def _pods(service: LLMService) -> int:
    """Return the number of router pods while the router runs. A suspended service has none."""
    return 0 if service.spec.suspend else service.spec.router_settings.replicas


def ready_router_pods(live: Manifest | None) -> int:
    """Return the number of ready router pods, of the present pod template or an earlier one."""
    return 0 if live is None else int(live.get("status", {}).get("readyReplicas", 0))


def _mode_of(live: Manifest) -> RouterMode:
    """Return the mode of the pods of a router's Deployment."""
    containers = live["spec"].get("template", {}).get("spec", {}).get("containers", ())
    ports = {port.get("name") for each in containers for port in each.get("ports", ())}
    is_pool = names.GATEWAY_PORT_NAME in ports
    return RouterMode.INFERENCE_POOL if is_pool else RouterMode.PROXY


def _are_all_ready(live: Manifest | None) -> bool:
    """Return whether the Deployment wants router pods, and all of them are up to date and ready."""
    if live is None:
        return False
    status, generation = live.get("status", {}), live["metadata"].get("generation", 0)
    desired = live["spec"].get("replicas", 1)
    is_current = status.get("observedGeneration", 0) >= generation
    ready = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    return bool(is_current and 0 < desired <= ready)
