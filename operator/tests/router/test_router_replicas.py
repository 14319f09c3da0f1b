"""Which addresses count as replicas of the service."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.engine_metrics import EngineMetrics
from llmservice_operator.router import replicas as module
from llmservice_operator.router.replicas import (
    CONFIRMED_SECONDS,
    KNOWN_SECONDS,
    MOST_ADDRESSES,
    Replicas,
)
from router_support.clock import Clock
from router_support.whole_pod import Names, ServedReplica, addresses, settings_of_pod
from shared_support.waiting import eventually_in_loop


@dataclass
class Bench:
    replicas: Replicas
    names: Names
    clock: Clock

    def confirmed(self) -> list[str]:
        return [each.name for each in self.replicas.views()]

    async def sees(self, *pods: str) -> None:
        await eventually_in_loop(lambda: self.confirmed() == list(pods))


async def asked_more_often_than(served: ServedReplica, times: int) -> None:
    await eventually_in_loop(lambda: served.questions > times)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOKUP_PERIOD_SECONDS", 0.02)


@asynccontextmanager
async def following(folder: Path, *served: ServedReplica) -> AsyncIterator[Bench]:
    clock, names = Clock(), Names([each.address for each in served])
    metrics = EngineMetrics(now=clock)
    for each in served:
        await each.start()
    replicas = Replicas(settings_of_pod(folder), metrics, names.resolve, clock)
    running = asyncio.create_task(replicas.run())
    try:
        await eventually_in_loop(replicas.asked.is_set)
        yield Bench(replicas, names, clock)
    finally:
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        await metrics.close()
        for each in served:
            await each.stop()


async def test_a_replica_is_told_with_its_report(tmp_path: Path) -> None:
    first, second = addresses(2)
    draining = ServedReplica(second, "chat-2", is_draining=True)
    async with following(tmp_path, ServedReplica(first, "chat-1"), draining) as bench:
        one, other = bench.replicas.views()
    assert (one.name, one.address, one.is_draining) == ("chat-1", f"{first}:8000", False)
    assert (other.name, other.address, other.is_draining) == ("chat-2", f"{second}:8000", True)
    assert one.report is not None
    assert (one.report.at, one.report.running) == (1000.0, 10)
    assert one.cache_tokens == one.report.kv_capacity_tokens > 0


async def test_the_adapters_that_a_replica_has_loaded_are_known(tmp_path: Path) -> None:
    (address,) = addresses(1)
    adapters = {"sql": "loaded", "new": "loading", "broken": "failed", "tone": "loaded"}
    async with following(tmp_path, ServedReplica(address, "chat-1", adapters=adapters)) as bench:
        (view,) = bench.replicas.views()
        assert view.adapters == ("sql", "tone")


async def test_only_a_replica_that_is_lost_without_a_drain_counts_as_ejected(
    tmp_path: Path,
) -> None:
    first, second = addresses(2)
    silent, draining = ServedReplica(first, "chat-1"), ServedReplica(second, "chat-2")
    async with following(tmp_path, silent, draining) as bench:
        draining.is_draining = True
        await eventually_in_loop(lambda: bench.replicas.views()[-1].is_draining)
        await draining.stop()
        await bench.sees("chat-1")
        assert bench.replicas.ejections == 0
        silent.reports_status = 503
        bench.clock.now += CONFIRMED_SECONDS + 0.1
        await eventually_in_loop(lambda: bench.replicas.ejections == 1)


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "team-b"},
        {"service": "chat-2"},
        {"phase": "loading"},
        {"reports_status": 404},
        {"reports_status": 503},
        {"pod": ""},
        {"is_older": True},
    ],
)
async def test_another_pod_or_one_that_is_not_ready_is_no_replica(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    (address,) = addresses(1)
    served = replace(ServedReplica(address, "chat-1"), **change)
    async with following(tmp_path, served) as bench:
        await eventually_in_loop(lambda: served.questions > 3)
        assert bench.confirmed() == []


@pytest.mark.parametrize(
    "change", [{"namespace": "team-b"}, {"phase": "loading"}, {"reports_status": 404}]
)
async def test_an_answer_that_denies_it_counts_at_once(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1")
    async with following(tmp_path, served) as bench:
        assert bench.confirmed() == ["chat-1"]
        bench.replicas.changed.clear()
        for name, value in change.items():
            setattr(served, name, value)
        await bench.sees()
        assert bench.replicas.changed.is_set()


async def test_a_replica_that_refuses_connections_is_lost_at_once(tmp_path: Path) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1")
    async with following(tmp_path, served) as bench:
        await served.stop()
        await bench.sees()


@pytest.mark.parametrize("change", [{"is_silent": True}, {"reports_status": 503}])
async def test_a_busy_replica_is_kept_for_3_seconds(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1")
    async with following(tmp_path, served) as bench:
        for name, value in change.items():
            setattr(served, name, value)
        asked = served.questions
        await eventually_in_loop(lambda: served.questions > asked)
        bench.clock.now += CONFIRMED_SECONDS - 0.1
        assert bench.confirmed() == ["chat-1"]
        bench.clock.now += 0.2
        assert bench.confirmed() == []


async def test_a_slow_replica_delays_no_other(tmp_path: Path) -> None:
    first, second = addresses(2)
    slow, other = ServedReplica(first, "chat-1"), ServedReplica(second, "chat-2")
    async with following(tmp_path, slow, other) as bench:
        slow.is_silent = True
        asked = slow.questions
        await eventually_in_loop(lambda: slow.questions > asked)
        before = other.questions
        await eventually_in_loop(lambda: other.questions > before + 5)
        assert slow.questions == asked + 1
        assert "chat-2" in bench.confirmed()


async def test_an_address_is_asked_for_a_minute_after_dns_named_it(tmp_path: Path) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1", phase="loading")
    async with following(tmp_path, served) as bench:
        bench.names.addresses = []
        bench.clock.now += KNOWN_SECONDS - 1
        asked = served.questions
        await eventually_in_loop(lambda: served.questions > asked + 2)
        bench.clock.now += 2
        await eventually_in_loop(lambda: bench.replicas.candidates == 0)


async def test_a_confirmed_replica_is_asked_however_long_dns_is_away(tmp_path: Path) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1")
    async with following(tmp_path, served) as bench:
        bench.names.fails = True
        for _ in range(3):
            bench.clock.now += KNOWN_SECONDS - 1
            asked = served.questions
            await asked_more_often_than(served, asked + 2)
            assert bench.confirmed() == ["chat-1"]


async def test_an_address_that_is_told_directly_is_asked(tmp_path: Path) -> None:
    (address,) = addresses(1)
    served = ServedReplica(address, "chat-1")
    await served.start()
    try:
        async with following(tmp_path) as bench:
            bench.replicas.learn([address])
            await bench.sees("chat-1")
    finally:
        await served.stop()


async def test_replicas_of_an_older_release_are_noticed(tmp_path: Path) -> None:
    first, second = addresses(2)
    older, other = ServedReplica(first, "chat-1", is_older=True), ServedReplica(second, "chat-2")
    async with following(tmp_path, older, other) as bench:
        assert bench.confirmed() == ["chat-2"]
        assert not bench.replicas.are_nameless
        other.phase = "loading"
        await eventually_in_loop(lambda: bench.replicas.are_nameless)
        await older.stop()
        await eventually_in_loop(lambda: not bench.replicas.are_nameless)


async def test_a_pod_with_two_addresses_counts_once(tmp_path: Path) -> None:
    first, second = addresses(2)
    served = [ServedReplica(each, "chat-1") for each in (first, second)]
    async with following(tmp_path, *served) as bench:
        assert [each.address for each in bench.replicas.views()] == [f"{first}:8000"]


def test_the_number_of_addresses_is_bounded(tmp_path: Path) -> None:
    clock = Clock()
    names = Names()
    replicas = Replicas(settings_of_pod(tmp_path), None, names.resolve, clock)  # type: ignore[arg-type]
    told = {f"10.{random.randrange(256)}.{i // 256}.{i % 256}" for i in range(MOST_ADDRESSES + 10)}
    replicas.learn(told)
    assert replicas.candidates == MOST_ADDRESSES
