from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from llmservice_operator.api.load_report import LOAD_REPORT, LoadReport, ReplicaLoad
from llmservice_operator.cluster import Cache
from llmservice_operator.errors import Forbidden
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS, SERVICES
from llmservice_operator.load_report_client import KEPT_SECONDS, LoadReportClient
from llmservice_operator.reconcile import LOOK_AT_START_SECONDS, REQUEUE_SECONDS, Reconciler
from llmservice_operator.settings import OperatorSettings
from operator_support.reconcile import RacingCluster, a_reconciler
from operator_support.services import a_pod, a_report

KEY = ("team", "llama")


@pytest.fixture
def cluster() -> RacingCluster:
    return RacingCluster()


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def reconciler(cluster: RacingCluster, cache: Cache) -> Reconciler:
    return a_reconciler(cluster, cache, OperatorSettings())


@pytest.fixture
def service(cluster: RacingCluster, cache: Cache) -> dict[str, Any]:
    stored = cluster.put(
        {
            "apiVersion": LLMSERVICES.api_version,
            "kind": LLMSERVICES.kind,
            "metadata": {"name": "llama", "namespace": "team", "generation": 1},
            "spec": {"model": {"uri": "hf://org/model"}, "accelerator": {"type": "cpu"}},
        }
    )
    cache.observe(stored)
    return stored


async def test_a_spec_change_in_the_response_to_our_own_write_is_not_lost(
    cluster: RacingCluster, cache: Cache, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    cluster.changes["LLMService"] = {**service["spec"], "replicas": 3}
    # The event of that change is ignored, because the response to the status write already
    # contained the change.
    assert await reconciler.reconcile(KEY) == 0.0
    assert not cache.observe(cluster.objects[LLMSERVICES, "llama"])

    await reconciler.reconcile(KEY)
    assert cluster.objects[DEPLOYMENTS, "llama"]["spec"]["replicas"] == 3


async def test_a_refusal_in_other_words_is_not_retried_at_once(
    cluster: RacingCluster, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    async def attempt(quota: str) -> float | None:
        said = f'services "llama" is forbidden: exceeded quota: {quota}'
        cluster.refusals[SERVICES] = Forbidden(said, 403)
        return await reconciler.reconcile(KEY)

    for quota in ("a", "b", "a"):  # the first passes write the other children
        await attempt(quota)
    assert await attempt("b") == await attempt("a") == REQUEUE_SECONDS
    cluster.changes["LLMService"] = {**service["spec"], "replicas": 3}
    assert await attempt("b") == 0.0


async def test_nothing_is_made_when_the_watch_has_not_yet_reported_a_deletion(
    cluster: RacingCluster, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    del cluster.objects[LLMSERVICES, "llama"]
    assert await reconciler.reconcile(KEY) == 2.0
    assert cluster.writes == []


async def test_nothing_is_made_for_a_successor_that_the_watch_has_not_reported(
    cluster: RacingCluster, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    cluster.put({**service, "metadata": {**service["metadata"], "uid": "successor"}})
    assert await reconciler.reconcile(KEY) == 2.0
    assert cluster.writes == []


async def test_nothing_is_made_while_the_service_is_being_deleted(
    cluster: RacingCluster, cache: Cache, reconciler: Reconciler, service: dict[str, Any]
) -> None:
    deleting = {**service["metadata"], "deletionTimestamp": "now", "resourceVersion": "101"}
    cluster.objects[LLMSERVICES, "llama"] = {**service, "metadata": deleting}
    assert await reconciler.reconcile(KEY) == 2.0
    cache.observe(cluster.objects[LLMSERVICES, "llama"])
    assert await reconciler.reconcile(KEY) is None
    assert cluster.writes == []


async def test_a_deleted_service_needs_no_further_pass(reconciler: Reconciler) -> None:
    assert await reconciler.reconcile(("team", "gone")) is None


async def test_a_download_is_reported_with_few_writes_and_without_numbers_if_none_are_known(
    cluster: RacingCluster, cache: Cache, service: dict[str, Any]
) -> None:
    done = 0

    async def answer(_: web.Request) -> web.Response:
        replica = ReplicaLoad(
            pod="llama-1",
            is_ready=False,
            phase="downloading",
            downloaded_bytes=done * 10**9,
            total_bytes=100 * 10**9,
        )
        text = LOAD_REPORT.dump_json(a_report(replica), by_alias=True).decode()
        return web.json_response(text=f'{{"team/llama": {text}}}')

    app = web.Application()
    app.router.add_get("/v1/scaling", answer)
    seconds = 1_000_000.0
    async with TestServer(app) as server, ClientSession() as session:
        url = str(server.make_url("/"))
        reports = LoadReportClient(url, monotonic=lambda: seconds)
        settings = OperatorSettings(metrics_server_url=url)
        reconciler = a_reconciler(cluster, cache, settings, reports=reports)
        await reconciler.reconcile(KEY)
        start_a_pod(cluster, cache)
        cluster.writes.clear()
        while done < 99:
            done += 1
            await reports.poll(session)
            assert await reconciler.reconcile(KEY) in (0.0, LOOK_AT_START_SECONDS)
        assert ready(cluster)["reason"] == "DownloadingModel"
        assert "95.0 GB of 100.0 GB (95 %)" in ready(cluster)["message"]
        assert cluster.writes.count("status") == 20
        assert await reconciler.reconcile(KEY) == LOOK_AT_START_SECONDS
    seconds += KEPT_SECONDS + 1
    await reconciler.reconcile(KEY)
    assert ready(cluster)["reason"] == "LoadingModel"
    assert await reconciler.reconcile(KEY) == LOOK_AT_START_SECONDS


class CountedReports(LoadReportClient):
    def __init__(self) -> None:
        super().__init__(None)
        self.reads = 0

    def read(self, namespace: str, name: str) -> LoadReport | None:
        self.reads += 1
        return None


@pytest.mark.usefixtures("service")
async def test_a_report_is_read_only_while_a_replica_may_start(
    cluster: RacingCluster, cache: Cache
) -> None:
    reports = CountedReports()
    settings = OperatorSettings(metrics_server_url="http://metrics-server")
    reconciler = a_reconciler(cluster, cache, settings, reports=reports)
    await reconciler.reconcile(KEY)
    assert reports.reads == 0
    start_a_pod(cluster, cache)
    await reconciler.reconcile(KEY)
    assert reports.reads == 1
    pod = cluster.objects[PODS, "llama-1"]
    status = {**pod["status"], "conditions": [{"type": "Ready", "status": "True"}]}
    cache.observe(cluster.put({**pod, "status": status}))
    await reconciler.reconcile(KEY)
    assert reports.reads == 1


def start_a_pod(cluster: RacingCluster, cache: Cache) -> None:
    """Report a pod with a running container, as the Deployment's controller and the kubelet do."""
    deployment = cluster.objects[DEPLOYMENTS, "llama"]
    counts = {"observedGeneration": 0, "replicas": 1, "updatedReplicas": 1}
    cache.observe(cluster.put({**deployment, "status": counts}))
    pod = a_pod({"running": {"startedAt": "2026-01-01T00:00:00Z"}}, started=False)
    labels = {**pod["metadata"]["labels"], "llmservice.dev/name": "llama"}
    metadata = {**pod["metadata"], "name": "llama-1", "namespace": "team", "labels": labels}
    cache.observe(cluster.put({**pod, "apiVersion": "v1", "kind": "Pod", "metadata": metadata}))


def ready(cluster: RacingCluster) -> dict[str, Any]:
    conditions = cluster.objects[LLMSERVICES, "llama"]["status"]["conditions"]
    found: dict[str, Any] = next(each for each in conditions if each["type"] == "Ready")
    return found
