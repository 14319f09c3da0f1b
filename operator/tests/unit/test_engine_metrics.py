"""Tests the scraper with real HTTP on management ports of loopback addresses."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.engine_metrics import EngineMetrics, Silent, UsageReport
from operator_support.metrics import Engine

RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def engine() -> Iterator[Engine]:
    # The port is fixed, so a random address avoids conflicts with concurrent tests.
    parts = (random.randrange(1, 255) for _ in range(3))
    with Engine(f"127.{'.'.join(map(str, parts))}").listening() as it:
        yield it


@pytest.fixture
async def metrics() -> AsyncIterator[EngineMetrics]:
    it = EngineMetrics(now=lambda: 1000.0)
    yield it
    await it.close()


async def test_a_ready_server_reports_its_counters(engine: Engine, metrics: EngineMetrics) -> None:
    engine.started, engine.duty_cycle, engine.waiting, engine.engines = 900.0, 88.0, 3, 2
    engine.pipeline_stages = 4

    answer = await metrics.ask(engine.address, is_ready=True)

    assert answer is not None
    assert (answer.phase, answer.elapsed_seconds) == ("ready", 100.0)
    assert (answer.snapshot.at, answer.snapshot.started) == (1000.0, 900.0)
    assert (answer.snapshot.waiting, answer.snapshot.max_sequences) == (3, 256)
    assert answer.snapshot.engines == 2
    assert answer.snapshot.pipeline_stages == 4
    assert answer.snapshot.counters.arrivals > 0
    assert answer.snapshot.counters.steps.steps > 0
    assert answer.gpu_duty_cycle_percent == 88.0
    assert answer.latencies is not None
    assert sum(answer.latencies.ttft) == pytest.approx(answer.snapshot.counters.finished)


async def test_a_server_that_is_not_ready_reports_its_progress(
    engine: Engine, metrics: EngineMetrics
) -> None:
    engine.phase, engine.download = "downloading", (3, 10)

    answer = await metrics.ask(engine.address, is_ready=False)

    assert answer is not None
    assert (answer.phase, answer.downloaded_bytes, answer.total_bytes) == ("downloading", 3, 10)


async def test_a_server_that_is_too_old_for_latencies_and_engines_is_understood(
    engine: Engine, metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = engine.autoscale()
    del told["counters"]["ttftMilliseconds"], told["counters"]["itlMilliseconds"], told["engines"]
    del told["pipelineStages"]
    monkeypatch.setattr(engine, "autoscale", lambda: told)

    answer = await metrics.ask(engine.address, is_ready=True)

    assert answer is not None
    assert answer.latencies is None
    assert answer.snapshot.engines == 1
    assert answer.snapshot.pipeline_stages == 1
    assert (await metrics.report(engine.address)).tokens_by_key is None


async def test_a_server_tells_who_it_is_and_what_it_has_left(
    engine: Engine, metrics: EngineMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = {"namespace": "models", "service": "chat", "pod": "chat-1", "uid": "u-1"}
    work = {"queuedPromptTokens": 300, "leftPromptTokens": 1200}
    told = engine.autoscale() | work | {"draining": True, "replica": replica}
    monkeypatch.setattr(engine, "autoscale", lambda: told)

    answer = await metrics.ask(engine.address, is_ready=True)

    assert answer is not None
    assert answer.replica is not None
    assert answer.replica.model_dump() == replica
    assert answer.is_draining
    snapshot = answer.snapshot
    assert (snapshot.queued_prompt_tokens, snapshot.left_prompt_tokens) == (300, 1200)


@pytest.mark.parametrize(("phase", "is_draining"), [("ready", False), ("draining", True)])
async def test_a_server_that_is_too_old_to_tell_its_work_drains_by_its_phase(
    engine: Engine, metrics: EngineMetrics, phase: str, is_draining: bool
) -> None:
    engine.phase = phase

    answer = await metrics.ask(engine.address, is_ready=True)

    assert answer is not None
    assert answer.is_draining is is_draining
    assert answer.replica is None
    assert answer.snapshot.left_prompt_tokens is None
    assert answer.snapshot.queued_prompt_tokens is None


PROBES = {
    f"{folder.name}: {name}": body
    for folder in sorted(RECORDED.glob("server_v*"))
    for name, body in json.loads((folder / "probes.json").read_text()).items()
}


@pytest.mark.parametrize("body", PROBES.values(), ids=PROBES)
async def test_a_probe_of_every_released_server_is_understood(
    engine: Engine,
    metrics: EngineMetrics,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
) -> None:
    monkeypatch.setattr(engine, "probe", lambda: body)

    answer = await metrics.ask(engine.address, is_ready=False)

    assert answer is not None
    download = body.get("download", {})
    assert (answer.phase, answer.elapsed_seconds, answer.downloaded_bytes, answer.total_bytes) == (
        body["phase"],
        body["elapsedSeconds"],
        download.get("bytesDone"),
        download.get("bytesTotal"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"started": "NaN"},
        {"running": -1},
        {"kvTokens": float("inf")},
        {"maxSequences": None},
        {"phase": "x" * 70_000},
        {"counters": {}},
        {"leftPromptTokens": -1},
        {"replica": {"namespace": "models"}},
    ],
)
async def test_an_impossible_report_is_ignored(
    engine: Engine,
    metrics: EngineMetrics,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    told = engine.autoscale() | change
    monkeypatch.setattr(engine, "autoscale", lambda: told)
    json.dumps(told)

    assert await metrics.ask(engine.address, is_ready=True) is None


async def test_a_silent_server_gives_no_report(engine: Engine, metrics: EngineMetrics) -> None:
    engine.is_silent = True
    assert await metrics.ask(engine.address, is_ready=True) is None
    assert await metrics.ask("127.255.255.254", is_ready=True) is None


@pytest.mark.parametrize("address", ["010.001.001.001", "fe80::1%eth0", "nowhere"])
async def test_an_address_that_cannot_be_used_gives_no_report(
    metrics: EngineMetrics, address: str
) -> None:
    assert await metrics.ask(address, is_ready=True) is None


@pytest.mark.parametrize(
    "body",
    sorted(RECORDED.glob("server_v*/autoscale_*.json")),
    ids=lambda it: f"{it.parent.name} {it.stem}",
)
def test_the_report_of_every_released_server_is_read(body: Path) -> None:
    recorded = json.loads(body.read_text())

    report = UsageReport.model_validate_json(body.read_bytes())

    snapshot = report.snapshot(now=recorded["started"] + 60)
    counted = recorded["counters"]
    assert snapshot.counters.arrivals == counted["arrivals"]
    assert snapshot.counters.slo_met == counted["sloMet"]
    assert snapshot.counters.prompt_lengths == tuple(counted["promptLengths"])
    assert snapshot.counters.steps.moments == tuple(counted["steps"]["moments"])
    assert (snapshot.running, snapshot.kv_tokens) == (recorded["running"], recorded["kvTokens"])
    assert report.latencies is not None
    assert report.latencies.itl == tuple(counted["itlMilliseconds"])
    assert report.phase == recorded["phase"]
    assert report.gpu_duty_cycle_percent == recorded["gpuDutyCyclePercent"]


async def test_no_request_waits_for_the_answers_to_other_requests() -> None:
    all_are_asked, number = asyncio.Event(), 250

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        await reader.readuntil(b"\r\n\r\n")
        number -= 1
        if number == 0:
            all_are_asked.set()
        await all_are_asked.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    metrics = EngineMetrics(timeout_seconds=60)
    reports = (metrics.report("127.0.0.1", port) for _ in range(number))
    found = await asyncio.gather(*reports, return_exceptions=True)
    await metrics.close()
    server.close()

    assert not any(isinstance(each, Silent) for each in found)
