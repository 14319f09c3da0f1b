"""The part of the status about the HTTPRoute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice_operator.api import Manifest
from llmservice_operator.api.conditions import ConditionStatus, ConditionType, ConditionUpdate
from llmservice_operator.api.reason_facts import in_commands
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.route import ParentReference
from llmservice_operator.api.spec import LLMService
from llmservice_operator.workload.pod_problems import quoted
from llmservice_operator.workload.replica import condition

ACCEPTED = "Accepted"
RESOLVED = "ResolvedRefs"
"""Conditions that the controller of a Gateway sets for each parent of an HTTPRoute."""


@dataclass(frozen=True)
class RouteView:
    """The HTTPRoute of a service in one pass."""

    is_served: bool = False
    """Whether the operator can use HTTPRoutes."""
    live: Manifest | None = None
    """The live HTTPRoute after the writes; None if the service owns none."""


def build_route_condition(service: LLMService, view: RouteView) -> ConditionUpdate | None:
    """Return the condition RouteReady; None while spec.route is absent."""
    route = service.spec.route
    if route is None:
        return None
    if not view.is_served:
        missing = Reason.GATEWAY_API_MISSING
        return _update("False", missing, f"{missing.meaning} {missing.hint}")
    if view.live is None:
        message = "The HTTPRoute does not exist yet; Ready says why."
        return _update("False", Reason.ROUTE_PENDING, message)
    states = [_state(service, each, view.live) for each in route.parent_refs]
    # The states of all Gateways are told, and the hint of the first problem.
    worst = min((reason for reason, _ in states), key=_ORDER.index)
    said = " ".join(text for _, text in states)
    if worst is Reason.ROUTE_ACCEPTED:
        return _update("True", worst, " ".join([said, *_cautions(service)]))
    return _update("False", worst, in_commands(service.name, f"{said} {worst.hint}"))


_ORDER = (
    Reason.ROUTE_REFUSED,
    Reason.ROUTE_UNRESOLVED,
    Reason.ROUTE_PENDING,
    Reason.ROUTE_ACCEPTED,
)
"""Reasons about one Gateway, the most useful one first."""


def _update(status: ConditionStatus, reason: Reason, message: str) -> ConditionUpdate:
    return ConditionUpdate(ConditionType.ROUTE_READY, status, reason, message)


def _state(service: LLMService, parent: ParentReference, live: Manifest) -> tuple[Reason, str]:
    """Return the state of the route at one Gateway, and a sentence about it."""
    name = f"{parent.kind} {parent.namespace or service.namespace}/{parent.name}"
    if parent.section_name is not None:
        name += f" ({parent.section_name})"
    reports = [*_reports(service, parent, live)]
    if not reports:
        return Reason.ROUTE_PENDING, f"{name} has not reported on the route."
    for kind, reason, problem in (
        (ACCEPTED, Reason.ROUTE_REFUSED, "does not accept the route"),
        (RESOLVED, Reason.ROUTE_UNRESOLVED, "cannot use the backend of the route"),
    ):
        reports.sort(key=lambda each: condition(each, kind).get("status") != "True")
        found = condition(reports[0], kind)
        if found.get("status") == "False":
            why = f"{found.get('reason', '')}: {quoted(found.get('message'))}"
            return reason, f"{name} {problem}: {why}."
        if found.get("status") != "True":
            return Reason.ROUTE_PENDING, f"{name} has not reported {kind}."
    return Reason.ROUTE_ACCEPTED, f"{name} accepts the route."


def _reports(
    service: LLMService, parent: ParentReference, live: Manifest
) -> Iterator[Mapping[str, Any]]:
    """Yield what controllers have reported on the present route at one Gateway.

    The form is that of an object with a status, as `condition` expects it.
    """
    generation = live["metadata"].get("generation", 0)
    wanted = (parent.kind, parent.namespace or service.namespace, parent.name, parent.section_name)
    for each in live.get("status", {}).get("parents", ()):
        reference = each["parentRef"]
        place = reference.get("kind", "Gateway"), reference.get("namespace", service.namespace)
        if (*place, reference["name"], reference.get("sectionName")) != wanted:
            continue
        current = [
            it
            for it in each.get("conditions", ())
            if it.get("observedGeneration", generation) >= generation
        ]
        yield {"status": {"conditions": current}}


def _cautions(service: LLMService) -> Iterator[str]:
    """Yield sentences about settings that an accepted route does not show."""
    policy, tls = service.spec.network_policy, service.spec.service.tls
    if policy.enabled and not policy.from_:
        yield (
            "Only pods of this namespace reach the service: if the pods of a Gateway run in "
            "another one, add it to spec.networkPolicy.from."
        )
    if tls is not None:
        yield (
            "The Service object speaks TLS: a Gateway needs a BackendTLSPolicy for it, or else "
            "remove spec.service.tls."
        )
