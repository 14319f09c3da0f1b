"""Tests that a service loses its last replicas and gets them back, with the HPA controller."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api.load_report import ExternalMetrics, ReplicaLoad
from llmservice_operator.api.wake import Wake
from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES, PODS
from llmservice_operator.names import ROUTER_LABEL, SERVICE_LABEL
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_pods_ready,
    make_service,
    until_settled,
    writes_nothing,
)
from operator_support.report import ReportSource, report_source
from shared_support.waiting import eventually, holds_for

SYNC_SECONDS = 60.0
"""Time limit in seconds. The load is processed every 15 s."""
HPA_SECONDS = 20.0
"""Time in seconds in which the HPA controller processes each autoscaler."""
OURS = ExternalMetrics(is_served=True, message="It is ours.")


class Idle:
    """A service that may have no replicas."""

    def __init__(self, api: Api, source: ReportSource, namespace: str, name: str) -> None:
        self._api, self._source, self._key = api, source, (namespace, name)
        self.report(0.0)
        autoscaling = {"minReplicas": 0, "maxReplicas": 4}
        api.create(LLMSERVICES, make_service(name, namespace, autoscaling=autoscaling))
        eventually(lambda: self.phase == "Serving", SYNC_SECONDS)

    @property
    def phase(self) -> str:
        """Phase of the router, after all pods were made ready."""
        for label in (SERVICE_LABEL, ROUTER_LABEL):
            make_pods_ready(self._api, *self._key, label)
        found: str = self._api.get(LLMSERVICES, *self._key)["status"]["router"]["phase"]
        return found

    @property
    def replicas(self) -> int:
        found: int = self._api.get(DEPLOYMENTS, *self._key)["spec"]["replicas"]
        return found

    @property
    def pods(self) -> list[str]:
        selector = f"{SERVICE_LABEL}={self._key[1]}"
        listed = self._api.list_all(PODS, self._key[0], labelSelector=selector)
        return [pod["metadata"]["name"] for pod in listed]

    def report(self, idle_seconds: float) -> None:
        """Let the metrics server report for how long nobody has used the service."""
        replicas = tuple(ReplicaLoad(pod=pod, is_ready=True) for pod in self.pods)
        known: dict[str, Any] = {
            "replicas": replicas,
            "external_metrics": OURS,
            "last_start_seconds": 30.0,
        }
        namespace, name = self._key
        known |= {"demand_percent": 1.0} if replicas else {"missing": "NoReadyReplica"}
        self._source.say(namespace, name, idle_seconds=idle_seconds, **known)

    def hold(self, requests: int) -> None:
        """Let the routers hold requests."""
        key = "/".join(self._key)
        self._source.wakes.pop(key, None)
        if requests:
            self._source.wakes[key] = Wake(held_requests=requests, held_percent=80.0 * requests)

    def told(self, type_: str) -> tuple[str, str]:
        found = condition(self._api.get(LLMSERVICES, *self._key), type_)
        return found["status"], found["reason"]

    def until_replicas(self, number: int) -> None:
        eventually(lambda: self.replicas == number, SYNC_SECONDS, f"{number} replicas")


@contextmanager
def operator(log: Path, namespace: str, url: str, **settings: Any) -> Iterator[OperatorProcess]:
    own = {"WATCH_NAMESPACES": namespace, "METRICS_SERVER_URL": url, **settings}
    with OperatorProcess(log, namespace, **own) as process:
        yield process.until_leading()


@pytest.mark.causes("Idle")
def test_a_service_without_requests_has_no_replicas_until_the_next_request(
    api: Api, namespace: str, name: str, tmp_path: Path
) -> None:
    with report_source() as source, operator(tmp_path / "log", namespace, source.url) as process:
        service = Idle(api, source, namespace, name)
        assert service.replicas == 1
        service.report(900.0)
        service.until_replicas(0)
        eventually(lambda: not service.pods, SYNC_SECONDS)
        service.report(905.0)
        eventually(lambda: service.told("Ready") == ("True", "Idle"), SYNC_SECONDS)
        eventually(lambda: service.told("Available") == ("False", "Idle"), SYNC_SECONDS)
        kubectl("-n", namespace, "wait", f"llm/{name}", "--for=condition=Ready", "--timeout=1s")

        # The HPA stays, and leaves a workload without replicas alone.
        assert api.get(AUTOSCALERS, namespace, name)["spec"]["minReplicas"] == 1
        eventually(lambda: service.told("MetricsAvailable")[1] == "WaitingForTraffic", SYNC_SECONDS)
        until_settled(process)
        with writes_nothing(process):
            holds_for(HPA_SECONDS, lambda: service.replicas == 0)

        service.hold(2)
        service.until_replicas(2)
        service.hold(0)
        eventually(lambda: len(service.pods) == 2, SYNC_SECONDS)
        service.report(0.0)
        eventually(lambda: service.told("Ready")[0] == "False", SYNC_SECONDS)
        # A wake that was heard before the pods existed does not count against them.
        holds_for(5, lambda: service.replicas == 2)
