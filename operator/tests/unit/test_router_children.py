"""Tests the objects of a service's router, and their selectors."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import quantity_value
from llmservice_operator.api.server_defaults import ServerDefaults
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.cluster import Cache
from llmservice_operator.desired.router import NO_ROUTER, RouterDecision
from llmservice_operator.kinds import PODS
from llmservice_operator.router_settings import ClientLimits, LimitsOfClients, RouterSettings
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service

ROUTED: dict[str, Any] = {"router": {"enabled": True}}
SERVING = RouterDecision(exists=True, pods=2, takes_requests=True, is_only_client=True)
STARTING = RouterDecision(exists=True, pods=2)
KEYS = {"auth": {"apiKeysSecretRef": {"name": "keys"}}}
TLS = {"service": {"port": 443, "tls": {"secretName": "certificate"}}}


def objects(
    service: LLMService,
    router: RouterDecision | None = None,
    settings: OperatorSettings = SETTINGS,
) -> dict[tuple[str, str], Manifest]:
    pin = resolve_pin(service, None, settings)
    built = build_all(Context.of(service, settings, pin, router=router))
    return {(each["kind"], each["metadata"]["name"]): each for each in built}


def pod_of(spec: Mapping[str, Any], settings: OperatorSettings = SETTINGS) -> dict[str, Any]:
    found = objects(a_service({**ROUTED, **spec}), SERVING, settings)
    pod: dict[str, Any] = found["Deployment", "qwen-router"]["spec"]["template"]["spec"]
    return pod


def settings_of(pod: Mapping[str, Any]) -> RouterSettings:
    (container,) = pod["containers"]
    return RouterSettings.from_environment(
        {each["name"]: each.get("value", "10.0.0.7") for each in container["env"]}
    )


OF_A_ROUTER = {
    ("NetworkPolicy", "qwen-router"),
    ("Service", "qwen-replicas"),
    ("Service", "qwen-router"),
    ("Deployment", "qwen-router"),
    ("PodDisruptionBudget", "qwen-router"),
}


def test_a_router_adds_its_own_objects_and_removes_none() -> None:
    without, routed = objects(a_service(), NO_ROUTER), objects(a_service(ROUTED), SERVING)
    assert {*routed} - {*without} == OF_A_ROUTER
    assert {*without} <= {*routed}


def test_the_service_object_keeps_its_name_and_port_and_selects_the_pods_that_take_requests() -> (
    None
):
    service = a_service(ROUTED)
    selected = {
        decision: objects(service, decision)["Service", "qwen"]["spec"]
        for decision in (NO_ROUTER, STARTING, SERVING)
    }
    assert selected[NO_ROUTER] == selected[STARTING]
    assert selected[NO_ROUTER]["selector"] == {"llmservice.dev/name": "qwen"}
    assert selected[SERVING] == {
        **selected[NO_ROUTER],
        "selector": {"llmservice.dev/router-of": "qwen"},
    }


def selectors(manifest: Manifest) -> Iterator[Mapping[str, str]]:
    spec = manifest.get("spec", {})
    for field in ("selector", "podSelector"):
        if field in spec:
            yield spec[field].get("matchLabels", spec[field])
    pod = spec.get("template", {}).get("spec", {})
    for spread in pod.get("topologySpreadConstraints", ()):
        yield spread["labelSelector"]["matchLabels"]


def pods(built: Mapping[tuple[str, str], Manifest]) -> Iterator[tuple[str, Mapping[str, str]]]:
    for (kind, name), manifest in built.items():
        if kind == "Deployment":
            yield name, manifest["spec"]["template"]["metadata"]["labels"]


@pytest.mark.parametrize("names_of_services", [("qwen", "qwen-router"), ("a", "b")])
def test_no_selector_matches_the_pods_of_both_the_replicas_and_a_router(
    names_of_services: tuple[str, str],
) -> None:
    spec = {
        **ROUTED,
        "autoscaling": {"maxReplicas": 4},
        "template": {
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
            ]
        },
    }
    built = [
        objects(a_service(spec, metadata={"name": each, "namespace": "team"}), decision)
        for each in names_of_services
        for decision in (STARTING, SERVING)
    ]
    labels = {
        (service, pod): found
        for service, each in zip(itertools.cycle((0, 0, 1, 1)), built, strict=False)
        for pod, found in pods(each)
    }
    seen = set()
    for number, each in enumerate(built):
        for (kind, name), manifest in each.items():
            for selector in selectors(manifest):
                matched = {at for at, found in labels.items() if selector.items() <= found.items()}
                assert len(matched) == 1, (kind, name)
                assert {service for service, _ in matched} == {number // 2}
                seen |= matched
    assert seen == {*labels}


def test_router_pods_are_watched_and_do_not_have_the_label_of_the_replicas() -> None:
    labels = names.router_labels(a_service())
    assert names.SERVICE_LABEL not in labels
    assert labels[names.ROUTER_LABEL] == "qwen"
    assert f"{names.MANAGED_BY_LABEL}={labels[names.MANAGED_BY_LABEL]}" == PODS.label_selector


def test_a_router_pod_belongs_to_no_service_in_the_cache() -> None:
    labels = names.router_labels(a_service())
    metadata = {"namespace": "team", "name": "qwen-router-1", "uid": "u", "resourceVersion": "1"}
    created = {"labels": labels, "creationTimestamp": "2030-01-01T00:00:00Z"}
    cache = Cache()
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | created}
    assert cache.take(pod) == frozenset()
    assert [each["metadata"]["name"] for each in cache.of_kind(PODS)] == ["qwen-router-1"]
    assert cache.owned(("team", "qwen"), PODS) == []


def test_a_router_accepts_lists_of_replicas_from_the_metrics_servers_of_its_operator() -> None:
    settings = SETTINGS.model_copy(update={"metrics_server_pods_host": "metrics-pods.system.svc"})
    assert settings_of(pod_of({}, settings)).metrics_servers_host == "metrics-pods.system.svc"
    assert settings_of(pod_of({})).metrics_servers_host is None


def test_the_addresses_of_pods_that_are_not_ready_are_published() -> None:
    built = objects(a_service(ROUTED), SERVING)
    for name in ("qwen-replicas", "qwen-router"):
        spec = built["Service", name]["spec"]
        assert (spec["clusterIP"], spec["publishNotReadyAddresses"]) == ("None", True)


def test_the_process_gets_the_settings_of_the_spec() -> None:
    spec = {
        **KEYS,
        **TLS,
        "router": {
            "enabled": True,
            "holdTimeoutSeconds": 60,
            "maxHeldRequests": 500,
            "policy": "LeastRequest",
            "heartbeatSeconds": 20,
        },
        "serving": {"maxBodyMebibytes": 2, "requestTimeoutSeconds": 90},
        "slo": {"ttftMilliseconds": 1500},
        "termination": {"preStopSeconds": 7},
    }
    pod = pod_of(spec)
    found = settings_of(pod)
    assert (found.namespace, found.service) == ("team", "qwen")
    assert found.replicas_host == "qwen-replicas.team.svc"
    assert found.pickers_host == "qwen-router.team.svc"
    assert found.pod_address == "10.0.0.7"
    assert (found.hold_timeout_seconds, found.max_held_requests) == (60, 500)
    assert (found.policy, found.heartbeat_seconds) == ("LeastRequest", 20)
    assert found.max_body_bytes == 2 * 1024**2
    assert found.ttft_limit_seconds == 1.5
    assert found.step_prior.prefill > 0
    assert (found.drain_seconds, found.drain_timeout_seconds) == (7, 150)
    assert pod["terminationGracePeriodSeconds"] == 7 + 150 + 15
    mounts = {each["mountPath"] for each in pod["containers"][0]["volumeMounts"]}
    folders = {found.api_keys_directory, found.tls_directory, found.run_directory}
    assert {str(each) for each in folders} <= mounts


def test_the_router_gets_the_limits_of_each_key_and_those_of_all_others() -> None:
    limits = {
        "requestsPerMinute": 60,
        "tokensPerMinute": 1000,
        "keys": [{"name": "batch", "requestsPerMinute": 5, "concurrentRequests": 2}],
    }
    auth = {"apiKeysSecretRef": {"name": "keys"}, "limits": limits}
    found = settings_of(pod_of({"auth": auth})).client_limits
    assert found == LimitsOfClients(
        default=ClientLimits(requests=60, tokens=1000),
        keys={"batch": ClientLimits(requests=5, tokens=1000, concurrent=2)},
    )
    assert settings_of(pod_of({})).client_limits is None


def test_the_ports_of_the_process_are_those_of_its_container_and_objects() -> None:
    built, found = objects(a_service(ROUTED), SERVING), settings_of(pod_of({}))
    (container,) = pod_of({})["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {
        "api": found.client_port,
        "management": found.management_port,
        "picker": found.picker_port,
    }
    headless = built["Service", "qwen-router"]["spec"]["ports"]
    assert {each["targetPort"] for each in headless} == {9002, 9090}
    (public,) = built["Service", "qwen"]["spec"]["ports"]
    assert public["targetPort"] == "api"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "management"


def test_a_router_pod_on_a_busy_node_is_not_restarted_while_it_starts_or_serves() -> None:
    (container,) = pod_of({})["containers"]
    starts, lives = container["startupProbe"], container["livenessProbe"]
    assert starts["failureThreshold"] * starts["periodSeconds"] == 300
    assert lives["failureThreshold"] * lives["periodSeconds"] == 60
    assert lives["timeoutSeconds"] == lives["periodSeconds"]


def test_a_limit_of_the_ttft_is_told_only_if_there_is_one() -> None:
    assert settings_of(pod_of({})).ttft_limit_seconds is None
    assert settings_of(pod_of({"autoscaling": {"maxReplicas": 2}})).ttft_limit_seconds == 0.5


def test_the_largest_values_of_the_spec_are_settings_that_the_process_accepts() -> None:
    largest = {
        "router": {
            "enabled": True,
            "holdTimeoutSeconds": 3600,
            "maxHeldRequests": 100_000,
            "heartbeatSeconds": 300,
        },
        "serving": {"maxBodyMebibytes": 1024, "requestTimeoutSeconds": 86_400},
        "slo": {"ttftMilliseconds": 3_600_000},
        "termination": {"preStopSeconds": 300, "drainTimeoutSeconds": 86_400},
    }
    found = settings_of(pod_of(largest))
    assert found.drain_timeout_seconds == 86_400
    assert found.max_body_bytes == 1024**3


def test_a_router_pod_is_restricted_and_has_no_token() -> None:
    pod = pod_of({**KEYS, **TLS})
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["run"]["emptyDir"]["medium"] == "Memory"
    secrets = {
        name: each["secret"]["secretName"] for name, each in volumes.items() if "secret" in each
    }
    assert secrets == {"api-keys": "keys", "tls": "certificate"}


def test_a_router_pod_sets_no_ids_where_the_platform_assigns_them() -> None:
    settings = SETTINGS.model_copy(update={"server_defaults": ServerDefaults(user_ids="Namespace")})
    assert pod_of({}, settings)["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_a_certificate_is_mounted_as_a_folder_so_that_its_renewal_restarts_no_pod() -> None:
    (container,) = pod_of(TLS)["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "tls")
    assert "subPath" not in mount
    renewed = {"service": {"port": 443, "tls": {"secretName": "certificate"}}}
    assert pod_of(TLS) == pod_of(renewed)


MEMORY = {
    # spec.router, request and limit of the memory
    "by default": ({}, "256Mi", "509Mi"),
    "many held requests": ({"maxHeldRequests": 8000}, "256Mi", "1384Mi"),
    "a limit": ({"resources": {"limits": {"memory": "2Gi"}}}, None, "2Gi"),
    "a request": ({"resources": {"requests": {"memory": "3Gi"}}}, "3Gi", "3Gi"),
    "a small request": ({"resources": {"requests": {"memory": "64Mi"}}}, "64Mi", "509Mi"),
}


@pytest.mark.parametrize(("router", "request_", "limit"), MEMORY.values(), ids=MEMORY)
def test_the_memory_suffices_for_the_held_requests(
    router: dict[str, Any], request_: str | None, limit: str
) -> None:
    resources = pod_of({"router": {"enabled": True, **router}})["containers"][0]["resources"]
    assert resources["requests"].get("memory") == request_
    assert resources["limits"]["memory"] == limit
    held = router.get("maxHeldRequests", 1000) * 128 * 1024
    assert (quantity_value(limit) or 0) >= held + 384 * 1024**2


def test_a_router_pod_runs_the_router_whatever_the_image_starts_by_default() -> None:
    assert pod_of({})["containers"][0]["command"] == ["llmservice-operator", "router"]


def test_the_image_is_that_of_the_spec_or_else_of_the_chart() -> None:
    settings = SETTINGS.model_copy(update={"router_image": "registry/router:2"})
    assert pod_of({}, settings)["containers"][0]["image"] == "registry/router:2"
    own = {"router": {"enabled": True, "image": "mine:1"}}
    assert pod_of(own, settings)["containers"][0]["image"] == "mine:1"


def test_the_router_has_the_pods_of_the_spec_and_none_while_the_service_is_suspended() -> None:
    three = {"router": {"enabled": True, "replicas": 3}}
    for spec, pods in ((three, 3), ({**three, "suspend": True}, 0)):
        found = objects(a_service(spec))
        assert found["Deployment", "qwen-router"]["spec"]["replicas"] == pods


def test_a_long_name_of_a_service_gives_valid_and_different_names() -> None:
    long = [f"{'q' * 62}{last}" for last in "ab"]
    services = [a_service(metadata={"name": each, "namespace": "team"}) for each in long]
    made = {make(each) for each in services for make in (names.router, names.replica_addresses)}
    assert len(made) == 4
    assert all(len(each) == 63 for each in made)


def test_the_address_of_a_service_with_tls_is_https() -> None:
    assert names.url(a_service(TLS)) == "https://qwen.team.svc"
    assert names.url(a_service({"service": {"tls": {"secretName": "c"}}})) == (
        "https://qwen.team.svc:80"
    )


def test_limits_of_the_spec_replace_those_of_the_router_and_its_requests() -> None:
    amounts = {"limits": {"cpu": "2", "memory": "3Gi"}, "requests": {"memory": "1Gi"}}
    pod = pod_of({"router": {"enabled": True, "resources": amounts}})
    assert pod["containers"][0]["resources"] == amounts
