"""Tests the objects and the phases of a router that answers Gateways."""

from datetime import timedelta
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.reasons import Reason
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired.router import (
    NO_ROUTER,
    POLICY_SECONDS,
    RouterDecision,
    decide_router,
    is_router_wanted,
)
from llmservice_operator.router_settings import RouterSettings
from llmservice_operator.router_status import RouterView, build_router_condition
from llmservice_operator.workload import resolve_pin
from operator_support.pods import ago
from operator_support.services import NOW, SETTINGS, a_deployment, a_service

POOLED: dict[str, Any] = {"router": {"mode": "InferencePool"}}
PROXY: dict[str, Any] = {"router": {"enabled": True}}
GATEWAYS = {"namespaceSelector": {"matchLabels": {"team": "gateways"}}}
ROUTE: dict[str, Any] = {"route": {"parentRefs": [{"name": "public"}]}}


def objects(
    spec: dict[str, Any], router: RouterDecision | None = None
) -> dict[tuple[str, str], Manifest]:
    service = a_service(spec)
    pin = resolve_pin(service, None, SETTINGS)
    built = build_all(Context.of(service, SETTINGS, pin, router=router))
    return {(each["kind"], each["metadata"]["name"]): each for each in built}


def live(spec: dict[str, Any], ready: int = 2) -> Manifest:
    """Return the live Deployment of a router."""
    deployment = a_deployment(replicas=2, updated=2, ready=ready, desired=2)
    template = objects(spec)["Deployment", "qwen-router"]["spec"]["template"]
    return {**deployment, "spec": {**deployment["spec"], "template": template}}


def recorded(spec: dict[str, Any], phase: str, seconds: float = 0) -> LLMService:
    return a_service(spec, status={"router": {"phase": phase, "since": ago(seconds)}})


def test_the_mode_switches_the_router_on() -> None:
    assert is_router_wanted(a_service(POOLED), SETTINGS)


def test_a_pool_leads_gateways_to_the_replicas_and_to_the_pickers() -> None:
    found = objects(POOLED)
    pool = found["InferencePool", "qwen"]
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    replicas = found["Deployment", "qwen"]["spec"]["template"]["metadata"]["labels"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= replicas.items()
    assert pool["spec"]["targetPorts"] == [{"number": 8000}]
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["failureMode"] == "FailOpen"
    pickers = found["Service", reference["name"]]["spec"]
    (port,) = pickers["ports"]
    assert port["port"] == reference["port"]["number"]
    pod = found["Deployment", "qwen-router"]["spec"]["template"]
    assert pickers["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    (target,) = (it for it in container["ports"] if it["name"] == port["targetPort"])
    settings = RouterSettings.from_environment(
        {each["name"]: each.get("value", "10.0.0.7") for each in container["env"]}
    )
    assert settings.gateway_port == target["containerPort"]


def test_only_routers_that_answer_gateways_are_ready_at_the_path_of_the_probe() -> None:
    (container,) = objects(POOLED)["Deployment", "qwen-router"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz/gateways"
    (container,) = objects(PROXY)["Deployment", "qwen-router"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_router_that_is_a_proxy_has_no_pool_and_no_port_for_gateways() -> None:
    found = objects(PROXY)
    assert not {("InferencePool", "qwen"), ("Service", "qwen-pickers")} & {*found}
    (container,) = found["Deployment", "qwen-router"]["spec"]["template"]["spec"]["containers"]
    assert "gateway" not in {port["name"] for port in container["ports"]}


def test_clients_and_gateways_reach_the_replicas_and_only_gateways_need_the_pickers() -> None:
    found = objects({**POOLED, "networkPolicy": {"from": [GATEWAYS]}})
    assert found["Service", "qwen"]["spec"]["selector"] == {"llmservice.dev/name": "qwen"}
    clients = [{"podSelector": {}}, GATEWAYS]
    for name, port in (("qwen", 8000), ("qwen-router", 9004)):
        ingress = found["NetworkPolicy", name]["spec"]["ingress"]
        assert {"from": clients, "ports": [{"port": port, "protocol": "TCP"}]} in ingress
    opened = [
        port["port"]
        for rule in found["NetworkPolicy", "qwen-router"]["spec"]["egress"]
        for port in rule["ports"]
    ]
    assert 9090 in opened
    assert 8000 not in opened


def test_the_route_leads_to_the_pool_once_the_pickers_are_ready() -> None:
    def backend(router: RouterDecision) -> str:
        rule = objects({**POOLED, **ROUTE}, router)["HTTPRoute", "qwen"]["spec"]["rules"][0]
        kind: str = rule["backendRefs"][0]["kind"]
        return kind

    starting = decide_router(a_service(POOLED), SETTINGS, None, NOW)
    serving = decide_router(recorded(POOLED, "Starting"), SETTINGS, live(POOLED), NOW)
    assert (backend(starting), backend(serving)) == ("Service", "InferencePool")
    for each in (starting, serving):
        assert not each.takes_requests
        assert not each.is_only_client


@pytest.mark.parametrize(("present", "wanted"), [(PROXY, POOLED), (POOLED, PROXY)])
def test_the_pods_of_one_mode_end_before_those_of_the_other_one_start(
    present: dict[str, Any], wanted: dict[str, Any]
) -> None:
    stopping = decide_router(recorded(wanted, "Serving", 9000), SETTINGS, live(present), NOW)
    assert stopping.status is not None
    assert stopping.status.phase == "Stopping"
    assert stopping.has_pool is (present is POOLED)
    assert stopping.takes_requests is (present is PROXY)
    later = recorded(wanted, "Stopping", POLICY_SECONDS + 1)
    assert not decide_router(later, SETTINGS, live(present), NOW).takes_requests
    over = recorded(wanted, "Stopping", 100_000)
    assert not decide_router(over, SETTINGS, live(present), NOW).exists
    assert decide_router(a_service(wanted), SETTINGS, None, NOW).exists


@pytest.mark.parametrize("settled", [{}, {"router": {"mode": "Proxy"}}])
def test_a_pool_that_becomes_a_proxy_keeps_its_router_in_every_pass(
    settled: dict[str, Any],
) -> None:
    service, present, now = recorded(settled, "Serving", 9000), live(POOLED), NOW
    phases = []
    for _ in range(10):
        found = decide_router(service, SETTINGS, present, now)
        assert found.status is not None
        phases.append((found.status.phase, found.exists))
        status = found.status.model_dump(mode="json", by_alias=True)
        service = a_service(settled, status={"router": status})
        if not found.exists:
            if len([it for it in phases if not it[1]]) == 2:
                break  # the pods of the other mode are gone only now
            continue
        now += timedelta(seconds=found.requeue_after_seconds or 0)
    assert phases[0] == ("Stopping", True)
    assert phases[-2:] == [("Starting", False)] * 2
    started = decide_router(service, SETTINGS, None, now)
    assert (started.exists, started.pods, started.mode) == (True, 2, "Proxy")


def test_a_router_that_the_spec_switches_off_ends_in_whatever_mode_its_pods_are() -> None:
    off = {"router": {"enabled": False}}
    assert decide_router(recorded(off, "Stopping", 100_000), SETTINGS, live(POOLED), NOW) == (
        NO_ROUTER
    )


def test_the_condition_tells_what_is_missing_and_ready_stays_true_without_pickers() -> None:
    service = recorded(POOLED, "Serving", 10)
    for ready, lacks_pools, reason in (
        (2, False, Reason.ROUTER_SERVING),
        (0, False, Reason.ROUTER_DEGRADED),
        (2, True, Reason.INFERENCE_POOL_MISSING),
    ):
        deployment = live(POOLED, ready)
        decision = decide_router(service, SETTINGS, deployment, NOW)
        update = build_router_condition(service, RouterView(decision, deployment, lacks_pools))
        assert update is not None
        assert update.reason is reason
