"""The part of the status about the router."""

from __future__ import annotations

from dataclasses import dataclass

from llmservice_operator.api import Manifest
from llmservice_operator.api.conditions import ConditionType, ConditionUpdate
from llmservice_operator.api.reason_facts import in_commands
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import RouterPhase
from llmservice_operator.desired.router import (
    NO_ROUTER,
    RouterDecision,
    ready_router_pods,
)
from llmservice_operator.workload.pod_problems import quoted
from llmservice_operator.workload.replica import condition


@dataclass(frozen=True)
class RouterView:
    """The router's state in one pass, and its live Deployment after the writes."""

    decision: RouterDecision = NO_ROUTER
    live: Manifest | None = None
    lacks_pools: bool = False
    """Whether the service needs an InferencePool, and the operator cannot use this kind."""


def build_router_condition(service: LLMService, view: RouterView) -> ConditionUpdate | None:
    """Return the condition RouterReady; None while the service has no router."""
    if not view.decision.exists:
        return None
    reason = _reason(view)
    pods = f"{ready_router_pods(view.live)} of {view.decision.pods} router pods are ready"
    refused = "" if view.live is None else _refusal(view.live)
    message = f"{pods}. {reason.meaning}{refused} {reason.hint}"
    if reason is Reason.ROUTER_SERVING:
        return ConditionUpdate(ConditionType.ROUTER_READY, "True", reason, f"{pods}.")
    said = in_commands(service.name, message)
    return ConditionUpdate(ConditionType.ROUTER_READY, "False", reason, said)


def _reason(view: RouterView) -> Reason:
    desired, ready = view.decision.pods, ready_router_pods(view.live)
    status = view.decision.status
    if status is not None and status.phase is RouterPhase.STOPPING:
        return Reason.ROUTER_STOPPING
    if view.lacks_pools:
        return Reason.INFERENCE_POOL_MISSING
    if status is not None and status.phase is RouterPhase.STARTING:
        return Reason.ROUTER_STARTING
    if ready >= desired:
        return Reason.ROUTER_SERVING
    # Without a picker, Gateways choose the replicas themselves.
    is_degraded = ready or view.decision.has_pool
    return Reason.ROUTER_DEGRADED if is_degraded else Reason.ROUTER_NOT_READY


def _refusal(live: Manifest) -> str:
    """Return a sentence that quotes why the API server refuses a router pod.

    If the API server refuses no router pod, the sentence is empty.
    """
    failure = condition(live, "ReplicaFailure")
    if failure.get("status") != "True":
        return ""
    return f" The API server refuses a pod: {quoted(failure.get('message'))}."
