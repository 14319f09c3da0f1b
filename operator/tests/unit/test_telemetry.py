import asyncio
import io
import json
import logging
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import ClientSession

from llmservice_operator.telemetry import (
    Health,
    Metrics,
    configure_logging,
    create_app,
    log_fields,
    measure_loop_lag,
    start_server,
)
from shared_support.waiting import eventually_in_loop


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("INFO", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_log_line_is_one_json_object_with_the_fields_of_its_pass(stream: io.StringIO) -> None:
    logger = logging.getLogger("test")
    with log_fields(namespace="team", name="llama"), log_fields(generation=3):
        logger.info("changed %s", "Deployment")
    logger.warning("two\nlines")

    first, second = lines(stream)
    assert first.pop("ts")
    assert first == {
        "level": "INFO",
        "logger": "test",
        "msg": "changed Deployment",
        "namespace": "team",
        "name": "llama",
        "generation": 3,
    }
    assert second["msg"] == "two\nlines"
    assert "namespace" not in second


def test_what_a_library_attaches_to_a_record_is_not_logged(stream: io.StringIO) -> None:
    logging.getLogger("kopf").info("changed", extra={"settings": "many", "k8s_ref": {}})
    assert list(lines(stream)[0]) == ["ts", "level", "logger", "msg"]


def test_the_traceback_of_an_error_is_in_its_line(stream: io.StringIO) -> None:
    try:
        raise ZeroDivisionError("nothing")
    except ZeroDivisionError:
        logging.getLogger("test").exception("broke")
    assert "ZeroDivisionError: nothing" in str(lines(stream)[0]["error"])


def test_lines_below_the_level_are_left_out(stream: io.StringIO) -> None:
    logging.getLogger("test").debug("quiet")
    logging.getLogger("test").info("loud")
    assert [line["msg"] for line in lines(stream)] == ["loud"]


class IdleQueue:
    def __len__(self) -> int:
        return 4

    def busy(self) -> int:
        return 2

    def unfinished_seconds(self) -> float:
        return 7.5

    def longest_running_seconds(self) -> float:
        return 5.0


async def test_metrics_carry_the_names_that_dashboards_of_controller_runtime_know() -> None:
    metrics = Metrics()
    metrics.added()
    metrics.started(0.2)
    metrics.finished(0.1, "success")
    metrics.finished(60.0, "timeout")
    metrics.retried()
    metrics.read_queue(IdleQueue(), workers=10)
    metrics.request_finished("PATCH", "https://10.0.0.1", "200", 0.01)
    metrics.read_leadership("llmservice-operator", lambda: True)
    text = (await metrics.render()).decode()

    for line in (
        'controller_runtime_reconcile_total{controller="llmservice",result="success"} 1.0',
        'controller_runtime_reconcile_total{controller="llmservice",result="error"} 1.0',
        'controller_runtime_reconcile_errors_total{controller="llmservice"} 1.0',
        'controller_runtime_reconcile_timeouts_total{controller="llmservice"} 1.0',
        'controller_runtime_reconcile_time_seconds_count{controller="llmservice"} 2.0',
        'controller_runtime_max_concurrent_reconciles{controller="llmservice"} 10.0',
        'controller_runtime_active_workers{controller="llmservice"} 2.0',
        'workqueue_adds_total{name="llmservice"} 1.0',
        'workqueue_retries_total{name="llmservice"} 1.0',
        'workqueue_depth{name="llmservice"} 4.0',
        'workqueue_unfinished_work_seconds{name="llmservice"} 7.5',
        'workqueue_longest_running_processor_seconds{name="llmservice"} 5.0',
        'rest_client_requests_total{code="200",host="https://10.0.0.1",method="PATCH"} 1.0',
        'leader_election_master_status{name="llmservice-operator"} 1.0',
    ):
        assert line in text
    assert "process_resident_memory_bytes" in text
    assert 'llmservice_build_info{version="' in text


async def test_the_series_of_a_service_end_with_it() -> None:
    metrics = Metrics()
    status = {
        "conditions": [{"type": "Ready", "status": "False", "reason": "LoadingModel"}],
        "replicas": 2,
        "readyReplicas": 1,
    }
    metrics.service_seen("team", "llama", status)
    metrics.service_seen("team", "qwen", {})
    text = (await metrics.render()).decode()
    labels = 'llmservice="llama",namespace="team"'
    condition = f'{labels},reason="LoadingModel",status="False",type="Ready"'
    assert f"llmservice_status_condition{{{condition}}} 1.0" in text
    assert f"llmservice_replicas_ready{{{labels}}} 1.0" in text

    metrics.service_gone("team", "llama")
    text = (await metrics.render()).decode()
    assert 'llmservice="llama"' not in text
    assert 'llmservice="qwen"' in text


async def test_the_series_of_a_condition_end_with_it() -> None:
    metrics = Metrics()

    async def see(*types: str) -> str:
        conditions = [{"type": type_, "status": "False", "reason": "Other"} for type_ in types]
        metrics.service_seen("team", "llama", {"conditions": conditions})
        return (await metrics.render()).decode()

    assert (await see("Ready", "SLOMet")).count('type="SLOMet"') == 1
    text = await see("Ready")
    assert 'type="SLOMet"' not in text
    assert text.count('type="Ready"') == 1
    assert (await see("Ready", "SLOMet")).count('type="SLOMet"') == 1
    metrics.service_gone("team", "llama")
    assert 'llmservice="llama"' not in (await metrics.render()).decode()


async def test_the_series_of_a_service_take_memory_only_during_a_scrape() -> None:
    metrics = Metrics()
    conditions = [
        {"type": f"Type{number}", "status": "True", "reason": "Serving"} for number in range(4)
    ]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(100):
        metrics.service_seen("team", f"llama-{number}", {"conditions": conditions})
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / 100 < 1500, "bytes for each service"
    assert (await metrics.render()).count(b'type="Type0"') == 100


def best_seconds(services: int) -> float:
    """Return the shortest time, in seconds, in which 100 services were seen and removed while the
    series of `services` others were kept.
    """
    metrics = Metrics()
    status = {"conditions": [{"type": "Ready", "status": "True", "reason": "Serving"}]}
    for number in range(services):
        metrics.service_seen("team", f"other-{number}", status)

    def seconds() -> float:
        started = time.perf_counter()
        for number in range(100):
            metrics.service_seen("team", f"llama-{number}", status)
            metrics.service_gone("team", f"llama-{number}")
        return time.perf_counter() - started

    return min(seconds() for _ in range(5))


def test_a_status_and_a_removal_cost_the_same_however_many_services_there_are() -> None:
    # A search through the series of all services would take about a hundred times as long.
    assert best_seconds(10_000) < 10 * best_seconds(100)


async def test_a_scrape_of_many_services_lets_the_event_loop_run() -> None:
    metrics, turns = Metrics(), 0
    conditions = [
        {"type": f"Type{number}", "status": "True", "reason": "Serving"} for number in range(8)
    ]
    for number in range(1000):
        metrics.service_seen("team", f"llm-{number}", {"conditions": conditions})
    scrape = asyncio.create_task(metrics.render())

    def is_done() -> bool:
        nonlocal turns
        turns += 1
        return scrape.done()

    await eventually_in_loop(is_done)
    assert (await scrape).count(b'type="Type7"') == 1000
    assert turns > 2


async def test_a_block_of_the_event_loop_stays_in_the_metrics() -> None:
    metrics = Metrics()
    measuring = asyncio.create_task(measure_loop_lag(metrics, 0.01))

    def measured(suffix: str, **labels: str) -> float:
        name = f"llmservice_event_loop_lag_seconds_{suffix}"
        return metrics.registry.get_sample_value(name, labels) or 0.0

    await eventually_in_loop(lambda: measured("count") > 0)
    threading.Event().wait(0.3)  # blocks the event loop
    await eventually_in_loop(lambda: measured("count") > measured("bucket", le="0.25"))
    measuring.cancel()


@pytest.fixture
async def address(unused_port: int) -> AsyncIterator[tuple[str, Health, list[float]]]:
    ages = [0.0]
    health = Health(lambda: ages[0])
    runner = await start_server(create_app(Metrics(), health), unused_port)
    yield f"http://127.0.0.1:{unused_port}", health, ages
    await runner.cleanup()


@pytest.fixture
def unused_port(unused_tcp_port: int) -> int:
    return unused_tcp_port


async def test_readiness_names_every_reason_and_liveness_does_not_depend_on_it(
    address: tuple[str, Health, list[float]],
) -> None:
    url, health, _ = address
    async with ClientSession(url) as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json())["reasons"] == ["the watches have not started yet"]
        async with session.get("/livez") as answer:
            assert answer.status == 200

        health.ready("watches")
        async with session.get("/readyz") as answer:
            assert answer.status == 200
            assert await answer.json() == {"status": "ok", "reasons": []}

        health.not_ready("watches", "the cluster cannot be read")
        async with session.get("/readyz") as answer:
            assert answer.status == 503


async def test_a_process_that_works_in_part_is_ready_and_names_what_it_does_not_do(
    address: tuple[str, Health, list[float]],
) -> None:
    url, health, _ = address
    health.ready("watches")
    health.report_hindrance("namespaces", "the namespace b cannot be read")
    async with ClientSession(url) as session:
        async with session.get("/readyz") as answer:
            assert answer.status == 200
            assert await answer.json() == {
                "status": "hindered",
                "reasons": ["the namespace b cannot be read"],
            }
        health.not_ready("watches", "the cluster cannot be read")
        async with session.get("/readyz") as answer:
            assert answer.status == 503
            found = (await answer.json())["reasons"]
            assert found == ["the cluster cannot be read", "the namespace b cannot be read"]
        health.ready("watches")
        health.report_hindrance("namespaces", None)
        async with session.get("/readyz") as answer:
            assert await answer.json() == {"status": "ok", "reasons": []}


async def test_liveness_fails_when_a_pass_cannot_be_ended(
    address: tuple[str, Health, list[float]],
) -> None:
    url, _, ages = address
    ages[0] = 121.0
    async with ClientSession(url) as session, session.get("/livez") as answer:
        assert answer.status == 503
        assert (await answer.json())["reasons"] == ["a pass has been running for 121 s"]


async def test_metrics_are_served_as_prometheus_text(
    address: tuple[str, Health, list[float]],
) -> None:
    url, _, _ = address
    async with ClientSession(url) as session, session.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        assert "llmservice_build_info" in await answer.text()
