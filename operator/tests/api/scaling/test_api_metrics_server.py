"""Tests two metrics servers behind a real API server, which the real HPA controller queries.

Simulated model servers report the counters of a constant load. Everything else is real. The tests
of this file share one world, because the load is known only after one minute.
"""

import base64
import functools
import json
import ssl
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from llmservice_operator import rights
from llmservice_operator.kinds import (
    API_SERVICES,
    AUTOSCALERS,
    CLUSTER_ROLES,
    DEPLOYMENTS,
    LLMSERVICES,
)
from llmservice_operator.sharding import Ring
from operator_support.intruder import Intruder
from operator_support.metrics import Engine, MetricsServerProcess, make_pod
from operator_support.processes import (
    Api,
    ApiError,
    condition,
    kubeconfig_for,
    kubectl,
    make_service,
    utc_now,
)
from shared_support.metric_table import differences
from shared_support.waiting import eventually, holds_for

pytestmark = pytest.mark.local

SERVICE = "llm"
NAME = "metrics"
OF_BOTH = "Operator and metrics server"
"""Heading in docs/metrics.md."""
API_SERVICE = "v1beta1.external.metrics.k8s.io"
EXTERNAL_METRICS = "/apis/external.metrics.k8s.io/v1beta1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
LOAD = 20.0
"""Requests per second. This is slightly more than one replica of these engines sustains."""


@dataclass
class World:
    api: Api
    namespace: str
    owner: str
    first: MetricsServerProcess
    second: MetricsServerProcess
    engines: tuple[Engine, Engine]

    @property
    def by_role(self) -> tuple[MetricsServerProcess, MetricsServerProcess]:
        """The learner and the follower of the service."""
        servers = {f"{host_of(self.api)}:{it.scaling_port}": it for it in (self.first, self.second)}
        learner, follower = Ring(servers).keepers((self.namespace, SERVICE))
        return servers[learner], servers[follower]

    def raw(self, *options: str, metric: str = "llm_gpu_demand_percent") -> str:
        path = f"{EXTERNAL_METRICS}/namespaces/{self.namespace}/{metric}"
        selector = f"?labelSelector=llmservice%3D{SERVICE}"
        return kubectl("get", "--raw", path + selector, *options, check=False)

    def hpa(self) -> dict[str, Any]:
        return self.api.get(AUTOSCALERS, self.namespace, SERVICE)

    def replicas(self) -> int:
        found: int = self.api.get(DEPLOYMENTS, self.namespace, SERVICE)["spec"]["replicas"]
        return found


def host_of(api: Api) -> str:
    return api.server.removeprefix("https://").partition(":")[0]


def make_account(api: Api, namespace: str, owner: str) -> str:
    """Make a service account with only the rights of a metrics server; return its token."""
    everywhere = (*rights.METRICS_SERVER, *rights.metrics_server_cluster_rights(owner))
    api.request(
        "POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": NAME}}
    )
    subjects = [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]

    def bind(kind: str, role: str, path: str, name: str) -> None:
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}
        api.request("POST", f"{path}/{kind.lower()}bindings", binding)

    own = f"{RBAC}/namespaces/{namespace}"
    api.request(
        "POST",
        f"{RBAC}/clusterroles",
        {"metadata": {"name": owner}, "rules": rights.rules(everywhere)},
    )
    bind("ClusterRole", owner, RBAC, owner)
    api.request(
        "POST",
        f"{own}/roles",
        {"metadata": {"name": NAME}, "rules": rights.rules(rights.METRICS_SERVER_PEERS)},
    )
    bind("Role", NAME, own, NAME)
    reader = "extension-apiserver-authentication-reader"
    bind("Role", reader, f"{RBAC}/namespaces/kube-system", owner)
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{NAME}/token"
    token: str = api.request("POST", path, {"spec": {}})["status"]["token"]
    return token


def publish(api: Api, namespace: str, *servers: MetricsServerProcess) -> None:
    """Make the Service object, whose endpoints are processes on the host of the API server."""
    service = {"metadata": {"name": NAME}, "spec": {"ports": [{"name": "https", "port": 443}]}}
    api.request("POST", f"/api/v1/namespaces/{namespace}/services", service)
    for server in servers:
        api.request(
            "POST",
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            {
                "metadata": {
                    "name": f"{NAME}-{server.external_port}",
                    "labels": {"kubernetes.io/service-name": NAME},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [host_of(api)], "conditions": {"ready": True}}],
                "ports": [
                    {"name": "https", "port": server.external_port},
                    {"name": "scaling", "port": server.scaling_port},
                ],
            },
        )


def make_scaled_deployment(api: Api, namespace: str) -> None:
    """Make a Deployment and its HPA. The pods never run, because there is no node."""
    labels = {"app": "scaled"}
    container = {"name": "server", "image": "registry.example/server:1"}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    metadata = {"name": SERVICE, "namespace": namespace}
    api.create(DEPLOYMENTS, {"metadata": metadata, "spec": spec})
    selector = {"matchLabels": {"llmservice": SERVICE}}
    metric = {
        "type": "External",
        "external": {
            "metric": {"name": "llm_gpu_demand_percent", "selector": selector},
            "target": {"type": "AverageValue", "averageValue": "85"},
        },
    }
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": SERVICE}
    hpa = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 5, "metrics": [metric]}
    api.create(AUTOSCALERS, {"metadata": metadata, "spec": hpa})


@pytest.fixture(scope="module")
def _room(api: Api) -> Iterator[tuple[str, str]]:
    """A namespace, and the name of a ClusterRole that owns the APIService.

    Both are deleted even after a failed start.
    """
    namespace = f"metrics-{uuid.uuid4().hex[:8]}"
    owner = f"{namespace}-owner"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    yield namespace, owner
    for path in (
        *(f"{RBAC}/clusterroles/{owner}", f"{RBAC}/clusterrolebindings/{owner}"),
        f"{RBAC}/namespaces/kube-system/rolebindings/{owner}",
        f"/api/v1/namespaces/{namespace}",
    ):
        with suppress(ApiError):
            api.request("DELETE", path)


@pytest.fixture(scope="module")
def world(
    api: Api, _room: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("metrics")
    namespace, owner = _room
    token = make_account(api, namespace, owner)
    kubeconfig = kubeconfig_for(api, token, folder / "kubeconfig")
    service = make_service(SERVICE, namespace, autoscaling={"maxReplicas": 5})
    api.create(LLMSERVICES, service)
    with ExitStack() as stack:
        engines = (Engine("127.0.1.1", LOAD / 2), Engine("127.0.1.2", LOAD / 2))
        for number, engine in enumerate(engines):
            stack.enter_context(engine.listening())
            make_pod(api, namespace, SERVICE, f"{SERVICE}-{number}", engine.address)
        loading = Engine("127.0.1.3", phase="downloading", download=(3, 10))
        stack.enter_context(loading.listening())
        make_pod(api, namespace, SERVICE, f"{SERVICE}-2", loading.address, is_ready=False)
        settings = {
            "KUBECONFIG": kubeconfig,
            "POD_ADDRESS": host_of(api),
            "METRICS_SERVICE_NAME": NAME,
            "OWNER_ROLE": owner,
        }
        first, second = (
            stack.enter_context(MetricsServerProcess(folder / log, namespace, **settings))
            for log in ("first", "second")
        )
        publish(api, namespace, first, second)
        make_scaled_deployment(api, namespace)
        first.until_ready()
        second.until_ready()
        yield World(api, namespace, owner, first, second, engines)


def until_known(world: World) -> None:
    for server in (world.first, world.second):
        if not server.is_running():
            continue
        eventually(functools.partial(knows_demand, server, world))


def knows_demand(server: MetricsServerProcess, world: World) -> bool:
    return demand_of(server, world) is not None


def demand_of(server: MetricsServerProcess, world: World) -> float | None:
    report = server.report(world.namespace, SERVICE)
    return None if report is None else report.demand_percent


def test_the_hpa_shows_why_the_load_is_unknown_and_holds(world: World) -> None:
    def answers() -> bool:
        text = world.raw()
        assert "The load is known once" in text, text
        return True

    eventually(answers)

    def said() -> bool:
        active = condition(world.hpa(), "ScalingActive")
        return active["status"] == "False" and "The load is known once" in active["message"]

    eventually(said)
    assert world.replicas() == 1


def test_both_servers_report_the_same_demand_and_the_hpa_follows(world: World) -> None:
    until_known(world)
    first = json.loads(world.raw())["items"][0]
    assert first["metricLabels"] == {"llmservice": SERVICE}
    eventually(lambda: world.replicas() == 2)
    hpa = kubectl("get", "hpa", SERVICE, "-n", world.namespace)
    assert "/85 (avg)" in hpa

    differences = []
    for _ in range(250):
        one, other = demand_of(world.first, world), demand_of(world.second, world)
        assert one is not None
        assert other is not None
        differences.append(abs(one - other) / max(one, other))
    assert max(differences) <= 0.02


def test_the_report_shows_ready_and_loading_replicas(world: World) -> None:
    until_known(world)
    report = world.second.report(world.namespace, SERVICE)

    assert report is not None
    assert [it.is_ready for it in report.replicas] == [True, True, False]
    loading = report.replicas[2]
    assert (loading.phase, loading.downloaded_bytes, loading.total_bytes) == ("downloading", 3, 10)
    assert report.external_metrics is not None
    assert report.external_metrics.is_served
    gauge = world.first.metric("llm_gpu_demand_percent", namespace=world.namespace)
    assert gauge == pytest.approx(report.demand_percent, rel=0.02)
    headings = ("Metrics server", "External metrics of a metrics server", OF_BOTH)
    assert differences(world.first.metrics(), *headings) == []
    certificate = "llmservice_metrics_server_certificate_expiry_timestamp_seconds"
    assert world.first.metric(certificate) > utc_now().timestamp()
    eventually(lambda: world.first.metric("llmservice_metrics_server_api_service_available") == 1)


def test_other_metrics_are_served_too(world: World) -> None:
    until_known(world)
    kv = json.loads(world.raw(metric="llm_kv_cache_usage_percent"))
    assert kv["items"][0]["value"] == "20000m"
    assert "GPU duty cycle" in world.raw(metric="llm_gpu_duty_cycle_percent")


def test_the_status_has_the_calibration_and_no_apply_of_the_operator_removes_it(
    world: World,
) -> None:
    def live() -> dict[str, Any]:
        return world.api.get(LLMSERVICES, world.namespace, SERVICE)

    def calibration() -> Any:
        return live().get("status", {}).get("autoscaling", {}).get("calibration")

    learned = eventually(calibration)
    path = LLMSERVICES.path(world.namespace, SERVICE, "status")
    head = {"apiVersion": LLMSERVICES.api_version, "kind": LLMSERVICES.kind}
    metadata = {"metadata": {"name": SERVICE, "namespace": world.namespace}}
    for status in ({"autoscaling": {"desiredReplicas": 2}, "replicas": 2}, {"replicas": 2}):
        world.api.request(
            *("PATCH", path, {**head, **metadata, "status": status}),
            "application/apply-patch+yaml",
            fieldManager="llmservice-operator",
            force="true",
        )
        assert calibration() == learned
    (entry,) = (
        it
        for it in live()["metadata"]["managedFields"]
        if it["manager"] == "llmservice-metrics-server"
    )
    owned = entry["fieldsV1"]["f:status"]
    assert owned.keys() == {"f:autoscaling"}
    assert owned["f:autoscaling"].keys() == {"f:calibration"}
    assert (entry["operation"], entry["subresource"]) == ("Apply", "status")


@pytest.fixture
def intruder(world: World, tmp_path: Path) -> Intruder:
    live = world.api.request("GET", API_SERVICES.path(name=API_SERVICE))
    trust = base64.b64decode(live["spec"]["caBundle"]).decode()
    host = f"{NAME}.{world.namespace}.svc"
    path = f"{EXTERNAL_METRICS}/namespaces/{world.namespace}/llm_gpu_demand_percent"
    return Intruder(trust, host, world.first.external_port, path, tmp_path)


SOMEBODY = {"X_Remote_User": "system:serviceaccount:kube-system:horizontal-pod-autoscaler"}


def test_only_the_front_proxy_has_access_and_only_for_users_with_rights(intruder: Intruder) -> None:
    front_proxy = intruder.certificate("front-proxy-client", "front-proxy-ca")
    wrong_name = intruder.certificate("intruder", "front-proxy-ca")
    of_the_cluster = intruder.certificate("front-proxy-client", "ca")

    for certificate in (None, of_the_cluster):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            intruder.ask(certificate, **SOMEBODY)
    assert intruder.ask(wrong_name, **SOMEBODY) == 401
    assert intruder.ask(front_proxy) == 401
    assert intruder.ask(front_proxy, X_Remote_User="eve") == 403
    assert intruder.ask(front_proxy, **SOMEBODY) in (200, 503)


def test_a_user_of_the_api_server_can_read_metrics_after_a_grant(world: World) -> None:
    until_known(world)
    assert "Forbidden" in world.raw("--as=eve")
    rule = {
        "apiGroups": ["external.metrics.k8s.io"],
        "resources": ["llm_gpu_demand_percent"],
        "verbs": ["list"],
    }
    role = {"metadata": {"name": "eve"}, "rules": [rule]}
    world.api.request("POST", f"{RBAC}/namespaces/{world.namespace}/roles", role)
    kubectl("create", "rolebinding", "eve", "-n", world.namespace, "--role=eve", "--user=eve")
    eventually(lambda: "ExternalMetricValueList" in world.raw("--as=eve"))


def test_a_namespace_can_be_deleted_while_external_metrics_are_served(world: World) -> None:
    until_known(world)
    name = f"{world.namespace}-other"
    kubectl("create", "namespace", name)
    # If an API could not be discovered, the namespace would stay, because the API might have
    # objects in it.
    assert "deleted" in kubectl("delete", "namespace", name, "--timeout=120s")


def api_service(world: World) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = world.api.request("GET", API_SERVICES.path())["items"]
    return next((it for it in found if it["metadata"]["name"] == API_SERVICE), None)


def test_a_deleted_api_service_is_restored_with_its_bundle_and_owner(world: World) -> None:
    def is_complete() -> bool:
        live = api_service(world)
        if live is None:
            return False
        bundle = base64.b64decode(live["spec"].get("caBundle", ""))
        return len(x509.load_pem_x509_certificates(bundle)) == 2

    eventually(is_complete)
    live = api_service(world)
    assert live is not None
    owner = world.api.request("GET", CLUSTER_ROLES.path(name=world.owner))
    assert live["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    assert live["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "llmservice-operator"

    world.api.request("DELETE", API_SERVICES.path(name=API_SERVICE))
    eventually(is_complete)


def test_a_foreign_api_service_is_left_alone_and_its_owner_named(
    world: World, namespace: str, tmp_path: Path
) -> None:
    before = api_service(world)
    assert before is not None
    other = MetricsServerProcess(tmp_path / "log", namespace, METRICS_SERVICE_NAME="other")
    with other:
        other.until_ready()
        world.api.create(LLMSERVICES, make_service("late", namespace))

        def told() -> bool:
            report = other.report(namespace, "late")
            return bool(
                report
                and report.external_metrics
                and not report.external_metrics.is_served
                and report.external_metrics.owner == f"{world.namespace}/{NAME}"
                and "is left alone" in report.external_metrics.message
            )

        eventually(told)
        holds_for(2, lambda: (api_service(world) or {})["spec"] == before["spec"])


def test_the_rights_of_the_table_are_enough_and_nothing_was_refused(world: World) -> None:
    for server in (world.first, world.second):
        assert server.metric("rest_client_requests_total", code="403") == 0
        assert server.is_running()


def test_without_the_learner_the_follower_keeps_serving_and_takes_over(world: World) -> None:
    until_known(world)
    learner, follower = world.by_role
    before = demand_of(follower, world)
    assert before is not None
    killed_at = utc_now().timestamp()
    learner.kill()

    def answers() -> bool:
        report = follower.report(world.namespace, SERVICE)
        assert report is not None
        assert report.demand_percent == pytest.approx(before, rel=0.05)
        return report.at > killed_at

    eventually(answers)
    # In a cluster, the kubelet's probe causes the removal of the killed one.
    path = f"/apis/discovery.k8s.io/v1/namespaces/{world.namespace}/endpointslices"
    world.api.request("DELETE", f"{path}/{NAME}-{learner.external_port}")
    eventually(lambda: follower.metric("llmservice_metrics_server_members") == 1.0)
    eventually(answers)


def test_silent_replicas_make_the_hpa_hold_with_a_message(world: World) -> None:
    until_known(world)
    eventually(lambda: world.replicas() == 2)
    for engine in world.engines:
        engine.is_silent = True
    try:

        def said() -> bool:
            active = condition(world.hpa(), "ScalingActive")
            return "2 of 2 Ready replicas do not answer" in active["message"]

        eventually(said)
        assert condition(world.hpa(), "ScalingActive")["status"] == "False"
        assert world.replicas() == 2
    finally:
        for engine in world.engines:
            engine.is_silent = False
    until_known(world)


def test_the_api_service_is_deleted_with_its_owner_and_namespaces_can_be_deleted(
    world: World,
) -> None:
    namespace = f"metrics-{uuid.uuid4().hex[:8]}"
    world.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    for server in (world.first, world.second):
        if server.is_running():
            server.terminate()
    world.api.request("DELETE", f"{RBAC}/clusterroles/{world.owner}")
    eventually(lambda: api_service(world) is None)
    world.api.request("DELETE", f"/api/v1/namespaces/{namespace}")
    names = "metadata.name=" + namespace
    eventually(
        lambda: not world.api.request("GET", "/api/v1/namespaces", fieldSelector=names)["items"], 60
    )
