"""Tests the reasons why replicas do not follow the load, each by its own cause: a foreign
APIService, a cluster without KEDA, a model without traffic, a quota.

The metrics server and the operator are real processes. Simulated model servers report counters.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.kinds import API_SERVICES, AUTOSCALERS, DEPLOYMENTS, LLMSERVICES, PODS
from llmservice_operator.metrics_server.registration import API_SERVICE
from llmservice_operator.scaling.traffic import FEWEST_REQUESTS
from operator_support.metrics import Engine, MetricsServerProcess, set_pod
from operator_support.processes import Api, OperatorProcess, condition, make_service, until_pods
from shared_support.waiting import eventually

pytestmark = pytest.mark.local

FIRST_MINUTE = 120.0
"""Time limit in seconds. The load is known after a minute, and processed every 15 s."""


@dataclass
class World:
    api: Api
    namespace: str

    @property
    def owner(self) -> str:
        """Namespace and name of the Service object to which external.metrics.k8s.io belongs."""
        return f"{self.namespace}/somebody-else"

    def create(self, name: str, *, on: str = "cpu", **autoscaling: Any) -> None:
        service = make_service(
            name,
            self.namespace,
            accelerator={"type": on},
            autoscaling={"maxReplicas": 3, **autoscaling},
        )
        self.api.create(LLMSERVICES, service)

    def run_pod(self, name: str, engine: Engine) -> None:
        """Report the first replica as running at the engine's address, in place of a kubelet."""
        until_pods(self.api, self.namespace, name, 1)
        selector = f"llmservice.dev/name={name}"
        (pod,) = self.api.list_all(PODS, self.namespace, labelSelector=selector)
        set_pod(self.api, self.namespace, pod["metadata"]["name"], engine.address, is_ready=True)

    def until_told(
        self, name: str, reason: str, kind: str = "AutoscalingActive", begins: str = ""
    ) -> str:
        """Wait until the condition has the reason and its message starts with `begins`.

        Return the message.
        """

        def found() -> str:
            each = condition(self.api.get(LLMSERVICES, self.namespace, name), kind)
            assert each["reason"] == reason, each
            assert each["message"].startswith(begins), each
            return str(each["message"])

        return eventually(found, FIRST_MINUTE)


@contextmanager
def idle_service(world: World) -> Iterator[None]:
    """Run a service with one replica and no requests."""
    world.create("idle")
    with Engine("127.0.2.1", rate=0.0).listening() as engine:
        world.run_pod("idle", engine)
        yield


@contextmanager
def busy_service(world: World) -> Iterator[None]:
    """Run a service whose load needs two GPUs, in a namespace whose quota allows one."""
    quota = {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}}
    world.api.request("POST", f"/api/v1/namespaces/{world.namespace}/resourcequotas", quota)
    with Engine("127.0.2.2", rate=20.0).listening() as engine:
        world.create("busy", on="nvidia")
        world.run_pod("busy", engine)
        yield


@pytest.fixture(scope="module")
def world(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    logs = tmp_path_factory.mktemp("reasons")
    namespace = f"reasons-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    version, _, group = API_SERVICE.partition(".")
    foreign = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": namespace, "name": "somebody-else", "port": 443},
        },
    }
    api.create(API_SERVICES, foreign)
    try:
        with MetricsServerProcess(logs / "metrics-server", namespace) as metrics_server:
            metrics_server.until_ready()
            url = f"http://127.0.0.1:{metrics_server.scaling_port}"
            settings = {"WATCH_NAMESPACES": namespace, "METRICS_SERVER_URL": url, "KEDA": "true"}
            with OperatorProcess(logs / "operator", namespace, **settings) as operator:
                operator.until_leading()
                world = World(api, namespace)
                # A load is known after one minute, so both services start at the same time.
                with idle_service(world), busy_service(world):
                    yield world
    finally:
        # While the APIService exists without a server, no namespace can be deleted.
        api.request("DELETE", API_SERVICES.path(None, API_SERVICE))
        api.request("DELETE", LLMSERVICES.path(namespace))
        api.request("DELETE", f"/api/v1/namespaces/{namespace}")


@pytest.mark.causes(Reason.FOREIGN_METRICS_API)
def test_the_provider_external_cannot_scale_while_the_metrics_api_has_another_owner(
    world: World,
) -> None:
    before = world.api.request("GET", API_SERVICES.path(None, API_SERVICE))
    world.create("external", provider="External")
    said = world.until_told("external", "ForeignMetricsAPI")
    assert said == (
        f"The number of replicas stays at 1. external.metrics.k8s.io belongs to {world.owner} in "
        f"this cluster and is left alone. {Reason.FOREIGN_METRICS_API.hint}"
    )
    eventually(lambda: world.api.read(AUTOSCALERS, world.namespace, "external") is None)
    after = world.api.request("GET", API_SERVICES.path(None, API_SERVICE))
    assert after["spec"] == before["spec"]


@pytest.mark.causes(Reason.KEDA_MISSING)
def test_without_keda_in_the_cluster_the_provider_keda_cannot_scale(world: World) -> None:
    world.create("keda", provider="KEDA")
    assert world.until_told("keda", "KEDAMissing") == (
        "The number of replicas stays at 1. "
        f"{Reason.KEDA_MISSING.meaning} {Reason.KEDA_MISSING.hint}"
    )


@pytest.mark.causes(Reason.WAITING_FOR_TRAFFIC)
def test_a_model_without_requests_waits_for_traffic(world: World) -> None:
    said = world.until_told(
        "idle",
        "WaitingForTraffic",
        begins="The number of replicas stays at 1. "
        f"Fewer than {FEWEST_REQUESTS} requests have been answered",
    )
    assert f"belongs to {world.owner}" in said
    world.until_told("idle", "WaitingForTraffic", "MetricsAvailable", "Fewer than ")
    replicas = world.api.get(DEPLOYMENTS, world.namespace, "idle")["spec"]["replicas"]
    assert replicas == 1


@pytest.mark.causes(Reason.NO_CAPACITY)
def test_a_load_that_exceeds_a_quota_is_reported_with_the_quotas_message(
    world: World,
) -> None:
    said = world.until_told("busy", "NoCapacity")
    assert said.startswith(f"1 of 2 replicas run. {Reason.NO_CAPACITY.hint} ")
    assert "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1" in said
