"""Tests the objects of the Gateway API against its real resource definitions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmservice_operator.kinds import DEPLOYMENTS, HTTP_ROUTES, INFERENCE_POOLS, LLMSERVICES, Kind
from localkube.gateway_api import resource_definitions
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, ApiError, condition, make_service, until_settled
from shared_support.waiting import eventually

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WITHIN_SECONDS = 60.0
PARENT = {"name": "public", "namespace": "gateways", "sectionName": "https"}
ROUTE = {"parentRefs": [PARENT, {"name": "inner"}], "hostnames": ["chat.example.com"]}


def is_served(api: Api, kind: Kind) -> bool:
    try:
        api.list_all(kind, "default")
    except (ApiError, ValueError):  # not found, as JSON and as plain text
        return False
    return True


def definitions() -> list[dict[str, Any]]:
    return [yaml.safe_load(path.read_text()) for path in resource_definitions()]


def install(api: Api) -> None:
    """Install the definitions; return once the API server serves the kinds."""
    for each in definitions():
        api.request("POST", CRDS, each)
    eventually(lambda: is_served(api, HTTP_ROUTES) and is_served(api, INFERENCE_POOLS))


def remove(api: Api) -> None:
    """Delete the definitions; return once they are gone."""
    names = {each["metadata"]["name"] for each in definitions()}
    for name in names:
        try:
            api.request("DELETE", f"{CRDS}/{name}")
        except ApiError as error:
            if error.status != 404:
                raise

    def are_gone() -> bool:
        return not names & {it["metadata"]["name"] for it in api.request("GET", CRDS)["items"]}

    eventually(are_gone)


@pytest.fixture
def without_definitions(api: Api) -> Iterator[None]:
    remove(api)
    yield
    remove(api)


def report(
    route: dict[str, Any], *parents: tuple[dict[str, str], str], resolved: str = "ResolvedRefs"
) -> dict[str, Any]:
    """Return the status that the controllers of Gateways give to a route.

    Each of `parents` is a reference, and the reason why the Gateway refuses the route or Accepted.
    `resolved` is the reason why the Gateways cannot use the backend, or ResolvedRefs.
    """
    moment, generation = "2026-01-01T00:00:00Z", route["metadata"]["generation"]

    def a_condition(kind: str, reason: str, status: str) -> dict[str, Any]:
        return {
            **{"type": kind, "reason": reason, "status": status, "message": f"It is {reason}"},
            **{"lastTransitionTime": moment, "observedGeneration": generation},
        }

    return {
        "parents": [
            {
                "controllerName": "example.com/gateway",
                "parentRef": parent,
                "conditions": [
                    a_condition("Accepted", reason, str(reason == "Accepted")),
                    a_condition("ResolvedRefs", resolved, str(resolved == "ResolvedRefs")),
                ],
            }
            for parent, reason in parents
        ]
    }


@pytest.mark.causes(
    "RoutePending",
    "RouteRefused",
    "RouteUnresolved",
    "RouteAccepted",
    "GatewayAPIMissing",
    "InferencePoolMissing",
)
@pytest.mark.usefixtures("without_definitions")
def test_a_route_and_a_pool_appear_with_their_apis_and_the_status_tells_what_gateways_say(
    api: Api, namespace: str, log: Path
) -> None:
    def state(kind: str, name: str = "chat") -> tuple[str, str]:
        found = condition(api.get(LLMSERVICES, namespace, name), kind)
        return found["status"], found["reason"]

    settings = {"WATCH_NAMESPACES": namespace, "AUDIT_PERIOD_SECONDS": "2"}
    with ForkedOperator(log, namespace, **settings) as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service("chat", namespace, route=ROUTE))
        pooled = {"router": {"mode": "InferencePool"}, "route": ROUTE}
        api.create(LLMSERVICES, make_service("pooled", namespace, **pooled))
        eventually(lambda: state("RouteReady") == ("False", "GatewayAPIMissing"))
        eventually(lambda: state("RouterReady", "pooled") == ("False", "InferencePoolMissing"))

        install(api)
        eventually(lambda: api.read(HTTP_ROUTES, namespace, "chat"), WITHIN_SECONDS)
        eventually(lambda: api.read(INFERENCE_POOLS, namespace, "pooled"), WITHIN_SECONDS)
        eventually(lambda: state("RouteReady") == ("False", "RoutePending"))
        route = api.get(HTTP_ROUTES, namespace, "chat")

        def points_at_the_pool() -> bool:
            # The real controller may write the status once more, without ready pods.
            be_ready(api, namespace, "pooled-router")
            return backend_of(api, namespace, "pooled") == "InferencePool"

        eventually(points_at_the_pool)
        # The stored objects do not differ from the applied ones, so the operator writes no more.
        until_settled(operator, 3)

        half = report(route, (PARENT, "Accepted"), ({"name": "inner"}, "NotAllowedByListeners"))
        api.patch(HTTP_ROUTES, namespace, "chat", {"status": half}, "status")
        eventually(lambda: state("RouteReady") == ("False", "RouteRefused"))
        accepted = (PARENT, "Accepted"), ({"name": "inner"}, "Accepted")
        lost = report(route, *accepted, resolved="BackendNotFound")
        api.patch(HTTP_ROUTES, namespace, "chat", {"status": lost}, "status")
        eventually(lambda: state("RouteReady") == ("False", "RouteUnresolved"))
        both = report(route, *accepted)
        api.patch(HTTP_ROUTES, namespace, "chat", {"status": both}, "status")
        eventually(lambda: state("RouteReady") == ("True", "RouteAccepted"))

        api.patch(LLMSERVICES, namespace, "chat", {"spec": {"route": None}})
        eventually(lambda: api.read(HTTP_ROUTES, namespace, "chat") is None)
        assert operator.terminate() == 0


def backend_of(api: Api, namespace: str, name: str) -> str:
    rule = api.get(HTTP_ROUTES, namespace, name)["spec"]["rules"][0]
    kind: str = rule["backendRefs"][0]["kind"]
    return kind


def be_ready(api: Api, namespace: str, name: str) -> None:
    """Give a Deployment the status that a controller gives it when all pods are ready."""

    def settled() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(DEPLOYMENTS, namespace, name)
        has_pods = found.get("status", {}).get("updatedReplicas") == found["spec"]["replicas"]
        return found if has_pods else None

    # The real controller writes the status when it sees the last pod.
    deployment = eventually(settled)
    count = deployment["spec"]["replicas"]
    status = {
        "observedGeneration": deployment["metadata"]["generation"],
        **dict.fromkeys(
            ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count
        ),
    }
    api.patch(DEPLOYMENTS, namespace, name, {"status": status}, "status")
