"""Tests everything about replicas with a kind of workload whose replicas have two pods."""

from datetime import UTC, datetime
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

import pytest

from llmservice_operator import names, workload
from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingProvider
from llmservice_operator.api.load_report import ReplicaLoad
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.children.workload import declare
from llmservice_operator.cluster import Cache, Cluster
from llmservice_operator.desired import Autoscaler
from llmservice_operator.desired.provider import ProviderPlan
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.registration import NAMESPACES_ONLY
from llmservice_operator.scaler import Scaler
from llmservice_operator.status import build_status
from llmservice_operator.workload import (
    WORKLOADS,
    EnginePin,
    Workload,
    observe_service,
    pin_annotations,
    registry,
    replicas_of,
    resolve_pin,
)
from operator_support.fleet import Pods
from operator_support.pair import (
    IN_PAIRS,
    PAIR_SETS,
    PAIRS,
    ROLE,
    a_pair,
    a_pair_set,
    a_pod_of_a_pair,
)
from operator_support.reconcile import served_kinds
from operator_support.report import a_report
from operator_support.services import NOW, SETTINGS, a_body, a_pod, a_service, one

NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
RUNNING = {"running": {"startedAt": "2026-01-02T03:00:00Z"}}
PIN = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
SCALED = {"autoscaling": {"minReplicas": 1, "maxReplicas": 4}}


@pytest.fixture(autouse=True)
def _pairs_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "WORKLOADS", (PAIRS, *WORKLOADS))


def in_pairs(**spec: Any) -> LLMService:
    return a_service({**IN_PAIRS, **spec})


def status_of(live: Manifest, *pods: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the status, and its conditions by type."""
    service = in_pairs(replicas=2)
    seen = observe_service(service, live, pods)
    status = build_status(service, PIN, seen, NOW).status
    return status, {each["type"]: each for each in status["conditions"]}


def test_the_status_counts_pairs_and_selects_their_servers() -> None:
    pods = [*a_pair("a", ready=True), *a_pair("b", ready=True)]
    status, conditions = status_of(a_pair_set(ready=2), *pods)
    assert (status["replicas"], status["readyReplicas"], status["ready"]) == (2, 2, "2/2")
    assert conditions["Ready"]["status"] == conditions["ModelReady"]["status"] == "True"
    assert status["selector"] == f"llmservice.dev/name=qwen,{ROLE}=server"


def test_a_worker_without_a_gpu_explains_why_its_replica_is_not_ready() -> None:
    server = a_pod_of_a_pair("b", "server", state=RUNNING, started=False)
    worker = a_pod_of_a_pair("b", "worker", unscheduled=NO_GPU)
    _, conditions = status_of(a_pair_set(ready=1), *a_pair("a", ready=True), server, worker)
    assert conditions["Ready"]["reason"] == "WaitingForGPU"
    assert NO_GPU in conditions["Ready"]["message"]


def test_the_download_of_a_server_says_nothing_about_its_worker() -> None:
    server = a_pod_of_a_pair("a", "server", ready=True)
    worker = a_pod_of_a_pair("a", "worker", state=RUNNING, started=False)
    load = ReplicaLoad(
        pod="a", is_ready=False, phase="downloading", downloaded_bytes=1, total_bytes=2
    )
    report = a_report(replicas=(load,))
    seen = observe_service(in_pairs(), a_pair_set(), [server, worker], report)
    assert seen.problem is not None
    assert seen.problem.reason == "LoadingModel"


def test_a_refusal_of_the_controller_of_pairs_is_reported() -> None:
    live = a_pair_set(all_=0, new=0, refusals=["No more pairs here."])
    assert status_of(live)[1]["Ready"]["message"] == "No more pairs here."


def test_the_model_is_loaded_when_both_pods_of_a_pair_are_ready() -> None:
    server = a_pod_of_a_pair("a", "server", ready=True)
    worker = a_pod_of_a_pair("a", "worker", state=RUNNING, started=False)
    for pods, is_loaded in (
        ([server], False),
        ([server, worker], False),
        (a_pair("a", ready=True), True),
    ):
        seen = observe_service(in_pairs(), a_pair_set(), pods)
        assert seen.has_loaded_model is is_loaded


def test_a_pair_serves_since_its_later_pod_is_ready_and_until_one_is_terminating() -> None:
    server = a_pod_of_a_pair("a", "server", ready=True, changed="2026-01-02T03:01:00Z")
    worker = a_pod_of_a_pair("a", "worker", ready=True, changed="2026-01-02T03:02:00Z")
    (pair,) = replicas_of([worker, server])
    assert pair.serves
    assert pair.ready_since == datetime(2026, 1, 2, 3, 2, tzinfo=UTC)
    worker["metadata"]["deletionTimestamp"] = "2026-01-02T03:03:00Z"
    (pair,) = replicas_of([server, worker])
    assert pair.is_leaving
    assert not pair.serves


def test_a_pair_has_its_nodes_when_its_later_pod_has_one() -> None:
    pods = [a_pod_of_a_pair("a", role) for role in ("server", "worker")]
    for pod, at in zip(pods, ("2026-01-02T03:01:00Z", "2026-01-02T03:02:00Z"), strict=True):
        (pair,) = replicas_of(pods)
        assert pair.scheduled_since is None
        pod["status"]["conditions"].append(
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at}
        )
    (pair,) = replicas_of(pods)
    assert pair.scheduled_since == datetime(2026, 1, 2, 3, 2, tzinfo=UTC)
    assert replicas_of(pods[:1])[0].scheduled_since is None


def test_pairs_of_an_earlier_template_are_ignored() -> None:
    old = a_pair("old", revision="1", created="2026-01-01T00:00:00Z", unscheduled=NO_GPU)
    new = a_pair("new", revision="2", state=RUNNING, started=False)
    _, conditions = status_of(a_pair_set(new=1), *old, *new)
    assert conditions["Ready"]["reason"] == "LoadingModel"


def test_pods_of_two_kinds_of_workload_make_replicas_of_their_own() -> None:
    found = replicas_of([*a_pair("a"), a_pod(), a_pod_of_a_pair("no-server", "worker")])
    assert [(each.name, len(each.pods)) for each in found] == [("a", 2), ("qwen-new-1", 1)]


def test_a_pod_that_has_ended_for_good_belongs_to_no_replica() -> None:
    server, worker = a_pair("a", ready=True)
    worker["status"]["phase"] = "Failed"
    (pair,) = replicas_of([server, worker])
    assert pair.pods == (server,)
    assert not pair.is_ready


PARTS = [name for name in vars(Workload) if not name.startswith("_")]


@pytest.mark.parametrize("name", sorted(each.name for each in iter_modules(workload.__path__)))
def test_every_kind_of_workload_is_registered(name: str) -> None:
    values = vars(import_module(f"{workload.__name__}.{name}")).values()
    declared = [
        value
        for value in values
        if not isinstance(value, type) and all(hasattr(value, part) for part in PARTS)
    ]
    assert all(value in WORKLOADS for value in declared), (
        f"workload/{name}.py implements a kind of workload that is in no list: give it its place "
        "in WORKLOADS of workload/registry.py"
    )


class Listening:
    """Model servers that record, by address, whether each was queried as a ready replica."""

    def __init__(self, servers: Pods) -> None:
        self.asked: dict[str, bool] = {}
        self._servers = servers

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None:
        self.asked[address] = is_ready
        return await self._servers.ask(address, is_ready=is_ready)


async def test_the_metrics_server_queries_one_pod_of_each_pair_and_reports_pairs() -> None:
    servers = Pods()
    servers.add("a")
    servers.add("b")
    starting = a_pod_of_a_pair("b", "worker", state=RUNNING, started=False)
    pods = [*a_pair("a", ready=True), a_pod_of_a_pair("b", "server", ready=True), starting]
    engines = Listening(servers)
    fleet = Fleet(lambda: [a_body(IN_PAIRS)], lambda: pods, engines, lambda: NAMESPACES_ONLY, {})
    await fleet.round(servers.now)
    assert engines.asked == {"a": True, "b": False}
    replicas = fleet.reports["team", "qwen"].replicas
    assert [(each.pod, each.is_ready) for each in replicas] == [("a", True), ("b", False)]


class Patches:
    def __init__(self) -> None:
        self.costs: dict[str, str] = {}

    async def write(self, _: str, path: str, change: Manifest, **__: Any) -> Manifest:
        name = path.rpartition("/")[2]
        self.costs[name] = change["metadata"]["annotations"][names.DELETION_COST_ANNOTATION]
        metadata = {"namespace": "team", "name": name, "uid": f"uid-{name}", "labels": {}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**metadata, "resourceVersion": "8"},
        }


async def test_both_pods_of_a_pair_have_its_deletion_cost() -> None:
    cluster, cache = Patches(), Cache()
    for live in (a_pair_set(ready=2), *a_pair("busy", ready=True), *a_pair("idle", ready=True)):
        cache.observe(live)
    report = a_report(
        at=NOW.timestamp(),
        demand_percent=10.0,
        replicas=(
            ReplicaLoad(pod="busy", is_ready=True, running_requests=9, kv_cache_percent=50.0),
            ReplicaLoad(pod="idle", is_ready=True, running_requests=0, kv_cache_percent=0.0),
        ),
    )
    served = served_kinds(cluster, SETTINGS)
    scaler = Scaler(cast(Cluster, cluster), cache, served, SETTINGS, lambda: NOW)
    plan = ProviderPlan(Autoscaler(ScalingProvider.EXTERNAL))
    assert await scaler.scale(in_pairs(**SCALED), plan, report) == (True, None)
    assert cluster.costs["busy"] == cluster.costs["busy-worker"] == "3050"
    assert cluster.costs["idle"] == cluster.costs["idle-worker"] == "0"


def context(service: LLMService) -> Context:
    return Context.of(service, SETTINGS, PIN)


def test_the_declared_workload_of_a_service_in_pairs_is_no_deployment() -> None:
    service = in_pairs(replicas=2)
    built = declare(PAIRS).build(context(service))
    assert built is not None
    assert (built["kind"], built["metadata"]["name"]) == (PAIR_SETS.kind, "qwen-pairs")
    assert built["spec"] == {"replicas": 2, "serverImage": PIN.image}
    assert declare(PAIRS).build(context(a_service())) is None
    assert "Deployment" not in {each["kind"] for each in build_all(context(service))}


def test_clients_and_autoscalers_find_the_pairs() -> None:
    built = build_all(context(in_pairs(**SCALED)))
    assert one("Service", built)["spec"]["selector"][ROLE] == "server"
    reference = {"apiVersion": "example.org/v1", "kind": "PairSet", "name": "qwen-pairs"}
    assert one("HorizontalPodAutoscaler", built)["spec"]["scaleTargetRef"] == reference
    by_keda = Context.of(
        in_pairs(**SCALED), SETTINGS, PIN, autoscaler=Autoscaler(ScalingProvider.KEDA)
    )
    assert one("ScaledObject", build_all(by_keda))["spec"]["scaleTargetRef"] == reference


def test_a_lost_status_is_read_from_the_live_pairs() -> None:
    live = a_pair_set()
    live["metadata"]["annotations"] = pin_annotations(PIN)
    newer = EnginePin("registry/gpu:1", "0.32.0", "nvidia", untried=True)
    assert resolve_pin(in_pairs(), live, SETTINGS) == PIN
    assert resolve_pin(in_pairs(), None, SETTINGS) == newer
