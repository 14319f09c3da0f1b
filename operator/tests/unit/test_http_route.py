"""Tests the HTTPRoute of a service, and the condition about it."""

from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.conditions import ConditionUpdate
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.children.http_route import CHILD, build_matches
from llmservice_operator.desired.client_paths import CLIENT_PATHS
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import HTTP_ROUTES
from llmservice_operator.route_status import RouteView, build_route_condition
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service

PUBLIC = {"name": "public", "namespace": "gateways", "sectionName": "https"}
ROUTED: dict[str, Any] = {"route": {"parentRefs": [PUBLIC], "hostnames": ["chat.example.com"]}}
OPEN: dict[str, Any] = {"networkPolicy": {"from": [{"namespaceSelector": {}}]}}


def route_of(spec: dict[str, Any]) -> Manifest | None:
    service = a_service(spec)
    built = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    found = [each for each in built if each["kind"] == "HTTPRoute"]
    return found[0] if found else None


def test_a_service_without_a_route_has_no_httproute() -> None:
    assert route_of({}) is None


def test_a_route_leads_from_its_gateways_to_the_service_object() -> None:
    route = route_of({**ROUTED, "service": {"port": 8080}})
    assert route is not None
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["hostnames"] == ["chat.example.com"]
    group = "gateway.networking.k8s.io"
    assert route["spec"]["parentRefs"] == [{"group": group, "kind": "Gateway", **PUBLIC}]
    (rule,) = route["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert (backend["kind"], backend["name"], backend["port"]) == ("Service", "qwen", 8080)


def test_a_route_without_host_names_takes_those_of_the_listeners() -> None:
    route = route_of({"route": {"parentRefs": [{"name": "public"}]}})
    assert route is not None
    assert "hostnames" not in route["spec"]


def matches(path: str) -> bool:
    """Return whether a Gateway sends a path to the service."""
    return any(
        path == each["path"]["value"]
        if each["path"]["type"] == "Exact"
        else f"{path}/".startswith(f"{each['path']['value']}/")
        for each in build_matches(CLIENT_PATHS)
    )


@pytest.mark.parametrize("path", CLIENT_PATHS)
def test_a_route_has_every_path_for_clients(path: str) -> None:
    assert matches(path.replace("{response_id}", "resp_1").replace("{model}", "org/name"))


@pytest.mark.parametrize("path", ["/", "/metrics", "/v1", "/v1/load_lora_adapter", "/sleep"])
def test_a_route_has_no_other_path(path: str) -> None:
    assert not matches(path)


def test_a_route_has_no_path_twice_and_fits_into_one_rule() -> None:
    paths = [each["path"]["value"] for each in build_matches(CLIENT_PATHS)]
    assert len({*paths}) == len(paths) <= 64


TIMEOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "the default": ({}, "615s"),
    "a limit of its own": ({"serving": {"requestTimeoutSeconds": 1800}}, "1815s"),
    "a wait in the router": (
        {"router": {"enabled": True, "holdTimeoutSeconds": 60}, "replicas": 2},
        "675s",
    ),
    "no limit": ({"serving": {"requestTimeoutSeconds": 0}, "router": {"enabled": True}}, "0s"),
}


@pytest.mark.parametrize(("spec", "seconds"), TIMEOUTS.values(), ids=TIMEOUTS)
def test_a_gateway_ends_no_answer_before_the_service_does(
    spec: dict[str, Any], seconds: str
) -> None:
    route = route_of({**ROUTED, **spec})
    assert route is not None
    assert route["spec"]["rules"][0]["timeouts"] == {"request": seconds, "backendRequest": seconds}


@pytest.mark.parametrize(
    "refusal",
    [
        ".spec.rules[0].timeouts: field not declared in schema",
        'strict decoding error: unknown field "spec.rules[0].timeouts"',
    ],
)
def test_definitions_without_time_limits_are_named_with_the_version_that_is_needed(
    refusal: str,
) -> None:
    with pytest.raises(InvalidSpec, match=r"spec\.route: needs the Gateway API 1\.2 or newer"):
        CHILD.substitute({}, refusal)
    assert CHILD.substitute({}, "spec.hostnames: Too many: 17") is None


def report(generation: int = 2, **conditions: tuple[str, str]) -> dict[str, Any]:
    return {
        "controllerName": "example.com/gateway",
        "parentRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", **PUBLIC},
        "conditions": [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": f"It says {reason}.",
                "observedGeneration": generation,
            }
            for kind, (status, reason) in conditions.items()
        ],
    }


YES, RESOLVED = ("True", "Accepted"), ("True", "ResolvedRefs")


def live(*parents: dict[str, Any]) -> Manifest:
    metadata = {"name": "qwen", "namespace": "team", "generation": 2}
    return {"kind": "HTTPRoute", "metadata": metadata, "status": {"parents": [*parents]}}


def condition(found: Manifest | None, *, is_served: bool = True, **spec: Any) -> ConditionUpdate:
    service: LLMService = a_service({**ROUTED, **OPEN, **spec})
    update = build_route_condition(service, RouteView(is_served, found))
    assert update is not None
    return update


STATES: dict[str, tuple[Manifest | None, Reason, str]] = {
    "not created": (None, Reason.ROUTE_PENDING, "The HTTPRoute does not exist yet"),
    "no controller": (live(), Reason.ROUTE_PENDING, "(https) has not reported on the route."),
    "an older generation": (
        live(report(1, Accepted=YES, ResolvedRefs=RESOLVED)),
        Reason.ROUTE_PENDING,
        "has not reported Accepted.",
    ),
    "another Gateway": (
        live({**report(Accepted=YES), "parentRef": {"name": "public"}}),
        Reason.ROUTE_PENDING,
        "has not reported on the route.",
    ),
    "refused": (
        live(report(Accepted=("False", "NotAllowedByListeners"), ResolvedRefs=RESOLVED)),
        Reason.ROUTE_REFUSED,
        "does not accept the route: NotAllowedByListeners: It says NotAllowedByListeners.",
    ),
    "unresolved": (
        live(report(Accepted=YES, ResolvedRefs=("False", "BackendNotFound"))),
        Reason.ROUTE_UNRESOLVED,
        "cannot use the backend of the route: BackendNotFound",
    ),
    "half a report": (live(report(Accepted=YES)), Reason.ROUTE_PENDING, "not reported Resolved"),
    "accepted": (
        live(report(Accepted=YES, ResolvedRefs=RESOLVED)),
        Reason.ROUTE_ACCEPTED,
        "Gateway gateways/public (https) accepts the route.",
    ),
    "one controller of two": (
        live(
            report(Accepted=("False", "NotAllowedByListeners")),
            report(Accepted=YES, ResolvedRefs=RESOLVED),
        ),
        Reason.ROUTE_ACCEPTED,
        "accepts the route.",
    ),
}


@pytest.mark.parametrize(("found", "reason", "said"), STATES.values(), ids=STATES)
def test_the_condition_tells_what_the_gateways_say(
    found: Manifest | None, reason: Reason, said: str
) -> None:
    update = condition(found)
    assert update.reason is reason
    assert update.status == ("True" if reason is Reason.ROUTE_ACCEPTED else "False")
    assert said in update.message
    if found is not None and reason is not Reason.ROUTE_ACCEPTED:
        assert update.message.endswith(reason.hint.replace("NAME", "qwen"))


def test_a_problem_of_one_gateway_is_told_beside_the_success_of_another() -> None:
    inner = {"name": "inner"}
    refused = {**report(Accepted=("False", "NoMatchingParent")), "parentRef": inner}
    update = condition(
        live(report(Accepted=YES, ResolvedRefs=RESOLVED), refused),
        route={"parentRefs": [PUBLIC, inner]},
    )
    assert update.reason is Reason.ROUTE_REFUSED
    assert "Gateway gateways/public (https) accepts the route." in update.message
    assert "Gateway team/inner does not accept the route: NoMatchingParent" in update.message


def test_without_the_gateway_api_the_condition_says_what_to_install() -> None:
    update = condition(None, is_served=False)
    assert (update.status, update.reason) == ("False", Reason.GATEWAY_API_MISSING)
    assert "Install the resource definitions of the Gateway API" in update.message


def test_an_accepted_route_names_the_settings_that_may_still_block_it() -> None:
    found = live(report(Accepted=YES, ResolvedRefs=RESOLVED))
    assert "networkPolicy" not in condition(found).message
    assert "spec.networkPolicy.from" in condition(found, networkPolicy={}).message
    assert "networkPolicy" not in condition(found, networkPolicy={"enabled": False}).message
    tls = condition(found, service={"port": 443, "tls": {"secretName": "certificate"}})
    assert "BackendTLSPolicy" in tls.message


def test_a_service_without_a_route_has_no_such_condition() -> None:
    assert build_route_condition(a_service(), RouteView()) is None


def test_the_kind_is_that_of_the_gateway_api() -> None:
    assert HTTP_ROUTES.discovery_path == "/apis/gateway.networking.k8s.io/v1"
