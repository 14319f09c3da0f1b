"""Tests the requests that the operator sends when it scales a service itself.

tests/api and tests/keda test scaling with real controllers.
"""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest

from llmservice_operator import names
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.api.load_report import ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.cluster import Cache, Cluster, ServedKinds
from llmservice_operator.desired import Autoscaler
from llmservice_operator.desired.provider import ProviderPlan
from llmservice_operator.errors import Forbidden
from llmservice_operator.kinds import SCALED_OBJECTS
from llmservice_operator.scaler import Scaler
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin
from operator_support.reconcile import served_kinds
from operator_support.report import a_report
from operator_support.services import NOW, a_body, a_pod, as_live

SETTINGS = OperatorSettings(keda=True)
DIRECT = ProviderPlan(Autoscaler(ScalingProvider.DIRECT))
HPA = ProviderPlan(Autoscaler(ScalingProvider.EXTERNAL))


class Recorder:
    """Records the requests, and responds as the API server does."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.has_keda = True

    async def list_resources(self, _: str) -> frozenset[str]:
        return frozenset({SCALED_OBJECTS.plural} if self.has_keda else ())

    async def list_all(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        for manifest in list[dict[str, Any]]():
            yield manifest

    async def apply(self, manifest: dict[str, Any], manager: str) -> dict[str, Any]:
        self.sent.append((manager, manifest["spec"]))
        metadata = {**manifest["metadata"], "resourceVersion": "8"}
        return {**manifest, "metadata": metadata}


@pytest.fixture
def cluster() -> Recorder:
    return Recorder()


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def served(cluster: Recorder) -> ServedKinds:
    return served_kinds(cluster, SETTINGS)


@pytest.fixture
def scaler(cluster: Recorder, cache: Cache, served: ServedKinds) -> Scaler:
    return Scaler(cast(Cluster, cluster), cache, served, SETTINGS, lambda: NOW)


def service(provider: str = "Auto", status: dict[str, Any] | None = None) -> LLMService:
    scaling = {"minReplicas": 2, "maxReplicas": 4, "provider": provider}
    return LLMService.parse(a_body({"autoscaling": scaling}, status=status or {}))


def runs(cache: Cache, of: LLMService, replicas: int) -> None:
    built = build_all(Context.of(of, SETTINGS, resolve_pin(of, None, SETTINGS)))
    deployment = as_live(next(each for each in built if each["kind"] == "Deployment"))
    deployment["spec"]["replicas"] = replicas
    deployment["metadata"]["uid"] = "uid-2"
    cache.observe(deployment)


async def test_a_service_that_was_scaled_to_zero_starts_with_its_minimum(
    cluster: Recorder, cache: Cache, scaler: Scaler
) -> None:
    # An HPA does not scale a Deployment with 0 replicas.
    runs(cache, service(), 0)
    assert await scaler.scale(service(), HPA, None) == (True, None)
    assert cluster.sent == [("llmservice-operator-handover", {"replicas": 2})]


async def test_without_a_report_direct_mode_writes_nothing(
    cluster: Recorder, cache: Cache, scaler: Scaler
) -> None:
    runs(cache, service(), 3)
    wrote, decision = await scaler.scale(service(), DIRECT, None)
    assert not wrote
    assert decision is not None
    assert decision.replicas == 3
    assert cluster.sent == []


async def test_a_recommendation_continues_from_the_previous_one(
    cluster: Recorder, cache: Cache, served: ServedKinds
) -> None:
    autoscaling = {"minReplicas": 1, "maxReplicas": 12, "mode": "Recommend"}
    of, now = LLMService.parse(a_body({"autoscaling": autoscaling})), [NOW]
    scaler = Scaler(cast(Cluster, cluster), cache, served, SETTINGS, lambda: now[0])
    runs(cache, of, 10)

    said = []
    for _ in range(60):
        now[0] += timedelta(seconds=15)
        report = a_report(at=now[0].timestamp(), demand_percent=4 * 85.0)
        _, decision = await scaler.scale(of, scaler.plan(of, report), report)
        assert decision is not None
        said.append(decision.replicas)

    assert said[0] == 10
    assert said == sorted(said, reverse=True)
    assert said[-1] == 4
    assert cluster.sent == []


async def test_the_first_load_is_acted_on_at_once(
    cluster: Recorder, cache: Cache, served: ServedKinds
) -> None:
    of, now = service(), [NOW]
    scaler = Scaler(cast(Cluster, cluster), cache, served, SETTINGS, lambda: now[0])
    runs(cache, of, 2)
    await scaler.scale(of, DIRECT, None)
    now[0] += timedelta(seconds=5)
    report = a_report(at=now[0].timestamp(), demand_percent=4 * 85.0)
    _, decision = await scaler.scale(of, DIRECT, report)
    assert decision is not None
    assert decision.replicas == 4


async def test_a_cost_that_cannot_be_written_prevents_no_scaling_and_is_not_sent_at_once_again(
    cluster: Recorder, cache: Cache, served: ServedKinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, now, asked = service(), [NOW], list[str]()
    scaler = Scaler(cast(Cluster, cluster), cache, served, SETTINGS, lambda: now[0])
    runs(cache, of, 4)
    pod = {**a_pod({"running": {}}, ready=True), "apiVersion": "v1", "kind": "Pod"}
    labels = {**pod["metadata"]["labels"], **names.labels(of)}
    own = {"namespace": of.namespace, "uid": "p", "resourceVersion": "5", "labels": labels}
    cache.observe({**pod, "metadata": {**pod["metadata"], **own}})

    async def refuse(method: str, path: str, *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(f"{method} {path}")
        raise Forbidden("a policy denied the request", 403)

    monkeypatch.setattr(cluster, "write", refuse, raising=False)
    for _ in range(60):
        now[0] += timedelta(seconds=15)
        replica = ReplicaLoad(pod=pod["metadata"]["name"], is_ready=True, running_requests=5)
        report = a_report(at=now[0].timestamp(), demand_percent=85.0, replicas=(replica,))
        await scaler.scale(of, DIRECT, report)
        if cluster.sent:
            break
    assert cluster.sent[0][1]["replicas"] < 4
    assert 0 < len(asked) <= 31
    assert len(set(asked)) == 1


@pytest.mark.parametrize(("installed", "expected"), [(True, "KEDA"), (False, None)])
async def test_keda_is_looked_for_before_it_is_used(
    cluster: Recorder,
    scaler: Scaler,
    served: ServedKinds,
    installed: bool,
    expected: str | None,
) -> None:
    cluster.has_keda = installed
    await served.refresh()
    found = scaler.plan(service("KEDA"), None).autoscaler.provider
    assert (found and found.value) == expected
