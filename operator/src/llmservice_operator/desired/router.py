"""Decides whether a service has a router, and whether clients reach it or the replicas directly.

A switch has phases, because connections that were opened before it continue for some time. The
status records the phase and its start, so the decision survives a restart of the operator. If the
record is lost, the phase starts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RouterPhase, RouterStatus
from llmservice_operator.desired.environment import request_timeout_seconds
from llmservice_operator.settings import OperatorSettings

POLICY_SECONDS: Final = 10.0
"""Time in seconds until every node is assumed to enforce a changed NetworkPolicy. It is an
estimate."""
UNLIMITED_REQUEST_SECONDS: Final = 3600
"""Assumed duration in seconds of the longest request of a service without a limit."""


@dataclass(frozen=True)
class RouterDecision:
    """The state of a service's router in one pass."""

    exists: bool = False
    """Whether the service has the objects of a router."""
    takes_requests: bool = False
    """Whether the Service object selects the router pods instead of the replicas."""
    is_only_client: bool = False
    """Whether the router pods are the only clients of the replicas."""
    status: RouterStatus | None = None
    """Record of the phase. None without a router, and for the settled router of a service that was
    never in a cluster."""
    requeue_after_seconds: float | None = None
    """Seconds after which the decision changes without an event. None if it does not."""

    @classmethod
    def settled(cls, service: LLMService, settings: OperatorSettings) -> RouterDecision:
        """Return the state that a new service reaches."""
        wanted = is_router_wanted(service, settings)
        return cls(exists=wanted, takes_requests=wanted, is_only_client=wanted)


NO_ROUTER: Final = RouterDecision()


def is_router_wanted(service: LLMService, settings: OperatorSettings) -> bool:
    """Return whether the service should have a router.

    If the spec does not say, a service that has a router keeps it, because its removal would close
    connections.
    """
    spec, recorded = service.spec, service.status.router
    if spec.router_settings.enabled is not None:
        return spec.router_settings.enabled
    if recorded is not None and recorded.phase is not RouterPhase.STOPPING:
        return True
    return spec.service.tls is not None or (settings.router_by_default and spec.most_replicas > 1)


def decide_router(
    service: LLMService, settings: OperatorSettings, live: Manifest | None, now: datetime
) -> RouterDecision:
    """Decide from the recorded phase and the router's live Deployment.

    `live` is None if the service owns no Deployment of a router.
    """
    recorded = service.status.router
    if is_router_wanted(service, settings):
        return _run(service, recorded, live, now)
    if live is None or (recorded is not None and recorded.phase is RouterPhase.STARTING):
        return NO_ROUTER  # no client has reached the router
    return _stop(service, recorded, live, now)


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
    status = RouterStatus(
        phase=phase,
        since=timestamp(since),
        ready=f"{ready_router_pods(live)}/{desired_router_pods(service)}",
    )
    if phase is RouterPhase.STARTING:
        return RouterDecision(exists=True, status=status)
    left = older_connection_seconds(service) - (now - since).total_seconds()
    return RouterDecision(
        exists=True,
        takes_requests=True,
        is_only_client=left <= 0,
        status=status,
        requeue_after_seconds=left if left > 0 else None,
    )


def _stop(
    service: LLMService, recorded: RouterStatus | None, live: Manifest, now: datetime
) -> RouterDecision:
    since = now
    if recorded is not None and recorded.phase is RouterPhase.STOPPING:
        since = datetime.fromisoformat(recorded.since)
    age = (now - since).total_seconds()
    left = older_connection_seconds(service) + POLICY_SECONDS - age
    if left <= 0:
        return NO_ROUTER
    # Until every node lets all clients reach the replicas, a router with ready pods takes them.
    until_open = POLICY_SECONDS - age if ready_router_pods(live) else 0.0
    return RouterDecision(
        exists=True,
        takes_requests=until_open > 0,
        status=RouterStatus(phase=RouterPhase.STOPPING, since=timestamp(since)),
        requeue_after_seconds=until_open if until_open > 0 else left,
    )


def older_connection_seconds(service: LLMService) -> int:
    """Return the seconds after which the requests that were open at a switch have ended."""
    return request_timeout_seconds(service.spec) or UNLIMITED_REQUEST_SECONDS


def desired_router_pods(service: LLMService) -> int:
    """Return the number of router pods that should run. A suspended service has none."""
    return 0 if service.spec.suspend else service.spec.router_settings.replicas


def ready_router_pods(live: Manifest | None) -> int:
    """Return the number of ready router pods, of the present pod template or an earlier one."""
    return 0 if live is None else int(live.get("status", {}).get("readyReplicas", 0))


def _are_all_ready(live: Manifest | None) -> bool:
    """Return whether all router pods of the present Deployment are ready, and there is one."""
    if live is None:
        return False
    status, generation = live.get("status", {}), live["metadata"].get("generation", 0)
    desired = live["spec"].get("replicas", 1)
    is_current = status.get("observedGeneration", 0) >= generation
    ready = min(status.get("readyReplicas", 0), status.get("updatedReplicas", 0))
    return bool(is_current and 0 < desired <= ready)
