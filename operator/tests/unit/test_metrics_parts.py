"""Tests the APIService, calibrations, gauges and the JSON port, each separately."""

import asyncio
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry, generate_latest

from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingMetric
from llmservice_operator.api.calibration import Calibration, UnmetDemand
from llmservice_operator.api.load_report import LOAD_REPORT, LOAD_REPORTS, LoadReport, ReplicaLoad
from llmservice_operator.cluster import Cluster, Key
from llmservice_operator.errors import ClusterError
from llmservice_operator.external_api import is_ours
from llmservice_operator.metrics_server.calibration_store import (
    CalibrationStore,
    stored_calibration,
)
from llmservice_operator.metrics_server.gauges import ReportCollector
from llmservice_operator.metrics_server.registration import (
    Endpoint,
    build_api_service,
    foreign_owner,
)
from llmservice_operator.metrics_server.report_api import create_report_app

CALIBRATION = Calibration(
    step_seconds=(6e-3, 3e-5, 2e-5, 5e-8),
    capacity_factor=1.1,
    cold_start_seconds=(60.0, 70.0),
    prompt_lengths=(0.0,) * 20 + (5.0,),
    answer_lengths=(0.0,) * 20 + (4.0,),
    mean_prompt_tokens=1000.0,
    mean_answer_tokens=200.0,
    computed_share=0.5,
    kv_tokens_per_sequence=1200.0,
)
KEY = ("ml", "qwen")
RECORDED = Path(__file__).parent / "recorded"
ENDPOINT = Endpoint("llm", "metrics", 443)


def report(**change: Any) -> LoadReport:
    fields: dict[str, Any] = {
        "at": 1000.0,
        "demand_percent": 170.0,
        "target_percent": 85.0,
        "message": "The load is 170 %.",
        "cold_start_seconds": 60.0,
        "scale_down_window_seconds": 90.0,
    }
    return LoadReport(**(fields | change))


def test_an_api_service_is_ours_by_label_and_service() -> None:
    owner = {"metadata": {"name": "release", "uid": "u"}}
    ours = build_api_service(ENDPOINT, "Q0E=", owner)

    assert is_ours(ours, ENDPOINT.namespace, ENDPOINT.name)
    assert ours["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert not is_ours(ours, "other", "metrics")
    assert not is_ours({**ours, "metadata": {"name": "x"}}, ENDPOINT.namespace, ENDPOINT.name)
    assert not is_ours({**ours, "spec": {"group": "x"}}, ENDPOINT.namespace, ENDPOINT.name)


@pytest.mark.parametrize(
    ("service", "owner"),
    [
        ({"namespace": "keda", "name": "keda-metrics"}, "keda/keda-metrics"),
        (None, "the API server itself"),
    ],
)
def test_a_foreign_owner_is_named(service: Any, owner: str) -> None:
    found = foreign_owner({"metadata": {"name": "x"}, "spec": {"service": service}})

    assert (found.is_served, found.owner) == (False, owner)
    assert f"belongs to {owner} and is left alone" in found.message


@pytest.mark.parametrize("release", ["operator_v0.1.0"])
def test_the_calibration_of_every_release_is_read(release: str) -> None:
    recorded = json.loads((RECORDED / release / "calibration.json").read_text())

    read = stored_calibration({"status": {"autoscaling": {"calibration": recorded}}})

    assert read is not None
    written = read.model_dump(by_alias=True, mode="json")
    assert {name: written[name] for name in recorded} == recorded


@pytest.mark.parametrize(
    ("metric", "field", "total"),
    [
        (ScalingMetric.EFFECTIVE_GPU_UTILIZATION, "demandPercent", 170.0),
        (ScalingMetric.GPU_DUTY_CYCLE, "gpuDutyCyclePercent", 180.0),
        (ScalingMetric.KV_CACHE_USAGE, "kvCachePercent", 20.0),
        (ScalingMetric.REQUESTS_WAITING, "requestsWaiting", 3.0),
    ],
)
def test_every_metric_names_its_total_in_the_report(
    metric: ScalingMetric, field: str, total: float
) -> None:
    known = report(gpu_duty_cycle_percent=180.0, kv_cache_percent=20.0, requests_waiting=3.0)

    assert known.total(metric) == total
    assert metric.json_field == field
    assert LOAD_REPORT.dump_python(known, by_alias=True)[field] == total


class Written:
    """A cluster that records every applied status and its field manager."""

    def __init__(self) -> None:
        self.applied: list[tuple[Manifest, str]] = []
        self.refuses = False

    async def apply_status(self, manifest: Manifest, manager: str) -> None:
        if self.refuses:
            raise ClusterError("no answer")
        self.applied.append((manifest, manager))


def services(calibration: Calibration | None = None) -> Mapping[Key, Manifest]:
    metadata = {"namespace": "ml", "name": "qwen", "uid": "uid-1", "labels": {}}
    stored = calibration and calibration.model_dump(by_alias=True, mode="json")
    status = {"autoscaling": {"calibration": stored}} if stored else {}
    return {KEY: {"metadata": metadata, "spec": {"autoscaling": {}}, "status": status}}


def moved(by: float) -> Calibration:
    return CALIBRATION.model_copy(update={"mean_answer_tokens": 200.0 * by})


async def test_a_calibration_is_written_at_once_and_then_on_a_change_after_ten_minutes() -> None:
    cluster = Written()
    store = CalibrationStore(cast(Cluster, cluster))
    await store.write(0, {KEY: CALIBRATION}, services())
    await store.write(300, {KEY: moved(2)}, services(CALIBRATION))
    await store.write(700, {KEY: moved(1.04)}, services(CALIBRATION))
    assert len(cluster.applied) == 1

    await store.write(700, {KEY: moved(1.06)}, services(CALIBRATION))
    manifest, manager = cluster.applied[1]
    assert manager == "llmservice-metrics-server"
    assert manifest["metadata"] == {"namespace": "ml", "name": "qwen", "uid": "uid-1"}
    assert manifest["status"].keys() == {"autoscaling"}
    assert manifest["status"]["autoscaling"].keys() == {"calibration"}
    assert stored_calibration(manifest) == moved(1.06)


async def test_an_unmet_demand_is_written_within_a_minute_and_its_absence_as_no_field() -> None:
    cluster = Written()
    store = CalibrationStore(cast(Cluster, cluster))
    unmet = UnmetDemand(percent=400.0, at=50.0)
    learned = CALIBRATION.model_copy(update={"unmet_demand": unmet})
    await store.write(0, {KEY: CALIBRATION}, services())
    await store.write(55, {KEY: learned}, services(CALIBRATION))
    assert len(cluster.applied) == 1

    await store.write(60, {KEY: learned}, services(CALIBRATION))
    before, after = (
        manifest["status"]["autoscaling"]["calibration"] for manifest, _ in cluster.applied
    )
    assert after == before | {"unmetDemand": {"percent": 400.0, "at": 50.0}}


async def test_the_last_calibration_is_written_before_ten_minutes_are_over_if_it_moved() -> None:
    cluster = Written()
    store = CalibrationStore(cast(Cluster, cluster))
    await store.write(0, {KEY: CALIBRATION}, services())

    for by, count in ((1.04, 1), (1.06, 2)):
        learned = {KEY: moved(by)}
        await store.write(30, learned, services(CALIBRATION), is_last=True)
        assert len(cluster.applied) == count


async def test_a_service_without_an_autoscaler_gets_no_calibration() -> None:
    cluster = Written()
    fixed = {KEY: {**services()[KEY], "spec": {"replicas": 2}}}
    await CalibrationStore(cast(Cluster, cluster)).write(0, {KEY: CALIBRATION}, fixed)
    assert cluster.applied == []


async def test_a_new_process_does_not_write_a_stored_calibration_again() -> None:
    cluster = Written()
    store = CalibrationStore(cast(Cluster, cluster))
    await store.write(0, {KEY: moved(2)}, services(CALIBRATION))
    await store.write(599, {KEY: moved(2)}, services(CALIBRATION))
    assert cluster.applied == []

    await store.write(600, {KEY: moved(2)}, services(CALIBRATION))
    assert len(cluster.applied) == 1


async def test_a_calibration_that_failed_is_due_again() -> None:
    cluster = Written()
    cluster.refuses = True
    store = CalibrationStore(cast(Cluster, cluster))
    await store.write(0, {KEY: CALIBRATION}, services())
    cluster.refuses = False
    await store.write(5, {KEY: CALIBRATION}, services())
    assert len(cluster.applied) == 1


def many(number: int) -> dict[Key, Manifest]:
    (service,) = services().values()
    names = [f"s{each}" for each in range(number)]
    return {
        ("ml", name): {**service, "metadata": {**service["metadata"], "name": name, "uid": name}}
        for name in names
    }


def slow_store(cluster: Written, seconds: float) -> CalibrationStore:
    """Return a store of which every write takes so many seconds."""
    clock = itertools.count(step=seconds)
    return CalibrationStore(cast(Cluster, cluster), lambda: next(clock))


async def test_writes_of_many_services_are_spread_over_rounds_and_none_is_left_out() -> None:
    cluster, found = Written(), many(50)
    store = slow_store(cluster, 0.125)
    learned = dict.fromkeys(found, CALIBRATION)
    rounds: list[int] = []
    while len(cluster.applied) < len(found):
        before = len(cluster.applied)
        await store.write(5.0 * len(rounds), learned, found)
        rounds.append(len(cluster.applied) - before)
    assert rounds == [7] * 7 + [1]
    assert len({manifest["metadata"]["name"] for manifest, _ in cluster.applied}) == len(found)

    # The caller limits the time of the last writes.
    await store.write(1000, learned, found, is_last=True)
    assert len(cluster.applied) == 2 * len(found)


async def test_services_whose_writes_fail_keep_no_other_waiting() -> None:
    cluster, found = Written(), many(20)
    store = slow_store(cluster, 0.25)
    cluster.refuses = True
    await store.write(0, dict.fromkeys(found, CALIBRATION), found)
    cluster.refuses = False
    await store.write(5, dict.fromkeys(found, CALIBRATION), found)
    assert [manifest["metadata"]["name"] for manifest, _ in cluster.applied] == ["s3", "s4", "s5"]


async def test_the_last_calibration_contains_the_history_of_the_last_hour() -> None:
    cluster = Written()
    store = CalibrationStore(cast(Cluster, cluster))
    stored = CALIBRATION.model_copy(update={"load_history": "AQ==", "history_slot": 7})
    later = stored.model_copy(update={"load_history": "AQI=", "history_slot": 8})
    await store.write(0, {KEY: stored}, services(stored))

    await store.write(900, {KEY: later}, services(stored))
    assert cluster.applied == []
    await store.write(900, {KEY: later}, services(stored), is_last=True)
    assert stored_calibration(cluster.applied[0][0]) == later


def test_a_calibration_that_cannot_be_read_is_none() -> None:
    assert stored_calibration({"status": {"autoscaling": {"calibration": {"x": 1}}}}) is None
    assert stored_calibration({}) is None


def test_gauges_show_what_is_known_and_have_no_sample_for_the_rest() -> None:
    known = report(
        replicas=(ReplicaLoad(pod="a", is_ready=True, utilization_percent=85.0),),
        capacity_factor=0.9,
    )
    registry = CollectorRegistry()
    registry.register(
        ReportCollector(lambda: {KEY: known, ("ml", "b"): report(demand_percent=None)})
    )

    lines = generate_latest(registry).decode().splitlines()

    demand = [line for line in lines if line.startswith("llm_gpu_demand_percent{")]
    assert demand == ['llm_gpu_demand_percent{llmservice="qwen",namespace="ml"} 170.0']
    assert (
        'llm_effective_gpu_utilization_percent{llmservice="qwen",namespace="ml",pod="a"} 85.0'
        in lines
    )
    assert 'llm_capacity_factor{llmservice="qwen",namespace="ml"} 0.9' in lines


@dataclass
class OneReport:
    """The reports of one round. The next round never ends."""

    reports: dict[Key, LoadReport]
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def reports_as_of(self, at: float) -> dict[Key, LoadReport]:
        self.asked.set()
        if at > self.reports[KEY].at:
            await asyncio.Event().wait()
        return self.reports

    def computed_for(self, learners: Collection[str]) -> dict[Key, LoadReport]:
        return self.reports if "me" in learners else {}


async def test_the_json_port_returns_one_report_or_all_of_them() -> None:
    known = report()
    app = create_report_app(OneReport({KEY: known}))
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        async with session.get(server.make_url("/v1/scaling/ml/qwen")) as answer:
            assert (await answer.json())["demandPercent"] == 170.0
        async with session.get(server.make_url("/v1/scaling/ml/other")) as answer:
            assert answer.status == 404
            assert "knows no LLMService ml/other" in (await answer.json())["message"]
        async with session.get(server.make_url("/v1/scaling")) as answer:
            assert (await answer.json())["ml/qwen"]["demandPercent"] == 170.0
        async with session.get(server.make_url("/v1/scaling?at=now")) as answer:
            assert answer.status == 400
            assert "seconds since 1970" in (await answer.json())["message"]
        # This is how a metrics server of an earlier release asks.
        for at in (known.at, known.at + 5):
            async with session.get(server.make_url(f"/v1/scaling?at={at}")) as answer:
                assert (await answer.json())["ml/qwen"]["demandPercent"] == 170.0


@pytest.mark.parametrize("number", [0, 1, 100, 101, 250])
async def test_the_answer_contains_every_report_once(number: int) -> None:
    known = {("ml", f"qwen-{each}"): report(at=float(each)) for each in range(number)}
    async with (
        TestServer(create_report_app(OneReport(known))) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/v1/scaling")) as answer,
    ):
        found = LOAD_REPORTS.validate_json(await answer.read())

    assert answer.content_type == "application/json"
    assert found == {f"{namespace}/{name}": it for (namespace, name), it in known.items()}


async def test_a_client_that_leaves_before_the_answer_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = report()
    reports = OneReport({KEY: known})
    later = f"/v1/scaling?at={known.at + 5}&wait=0.3"
    # A TestServer cancels the handler of a client that leaves, and a real server does not.
    runner = web.AppRunner(create_report_app(reports))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {later} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await reports.asked.wait()
        writer.transport.abort()
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{host}:{port}{later}") as answer,
        ):
            assert answer.status == 200
    finally:
        await runner.cleanup()

    assert not caplog.records
