"""Tests that workers and retries are shared among groups, so that a slow group delays no other."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from llmservice_operator.errors import ClusterError
from llmservice_operator.workqueue import QueueSettings, RetryRate, Shares, WorkQueue
from operator_support.workqueue import Observer, StandingClock, run_workers, settle, stop

SHARES = Shares()
Key = tuple[str, int]
Process = Callable[[Key], Awaitable[float | None]]


class World:
    """Namespaces with services. The passes over some of them hang until the test releases them."""

    def __init__(self) -> None:
        self.clock = StandingClock()
        self.queue: WorkQueue[Key] = WorkQueue(
            Observer(),
            QueueSettings(timeout_seconds=1e9),
            self.clock,
            lambda low, high: 0.0,
            group_of=lambda key: key[0],
        )
        self.hanging: set[str] = set()
        self.running: Counter[str] = Counter()
        self.done: list[Key] = []
        self.released = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "World":
        self._workers = await run_workers(self.queue, self._process, SHARES.workers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._workers)

    async def _process(self, key: Key) -> None:
        self.running[key[0]] += 1
        if key[0] in self.hanging:
            await self.released.wait()
        self.running[key[0]] -= 1
        self.done.append(key)

    async def add(self, namespace: str, services: int = 1) -> None:
        for number in range(services):
            self.queue.add((namespace, number))
        await settle()

    async def release(self) -> None:
        """Let the passes that hang now continue."""
        released, self.released = self.released, asyncio.Event()
        released.set()
        await settle()

    def is_served(self, namespace: str) -> bool:
        return (namespace, 0) in self.done


async def test_a_namespace_whose_writes_hang_keeps_only_its_share_of_the_workers() -> None:
    async with World() as world:
        await world.add("slow")
        world.hanging = {"slow"}
        await world.add("slow", 30)
        assert world.running["slow"] == SHARES.of_group
        await world.add("quiet")
        assert world.is_served("quiet")


async def test_a_new_namespace_gets_few_workers_until_a_pass_was_quick() -> None:
    async with World() as world:
        world.hanging = {"new"}
        await world.add("new", 30)
        assert world.running["new"] == SHARES.of_new_group
        world.hanging.clear()
        await world.release()
        assert len([key for key in world.done if key[0] == "new"]) == 30


async def test_many_namespaces_that_hang_leave_workers_to_one_that_was_quick() -> None:
    async with World() as world:
        await world.add("quiet")
        world.done.clear()
        for number in range(40):
            world.hanging.add(f"slow-{number}")
            await world.add(f"slow-{number}", 30)
        assert world.running.total() == SHARES.for_slow_and_new_groups
        await world.add("quiet")
        assert world.is_served("quiet")


async def test_namespaces_known_to_hang_leave_workers_to_a_new_one() -> None:
    async with World() as world:
        for number in range(40):
            world.hanging.add(f"slow-{number}")
            await world.add(f"slow-{number}")
        while len(world.done) < 40:
            world.clock.advance(SHARES.slow_seconds + 1)
            await world.release()
        for number in range(40):
            await world.add(f"slow-{number}", 30)
        assert world.running.total() == SHARES.for_slow_groups
        await world.add("new")
        assert world.is_served("new")


async def test_a_namespace_gets_its_share_back_with_a_quick_pass() -> None:
    async with World() as world:
        world.hanging = {"slow"}
        await world.add("slow")
        world.clock.advance(SHARES.slow_seconds + 1)
        await world.release()
        world.hanging.clear()
        await world.add("slow")
        for number in range(20):
            world.hanging.add(f"other-{number}")
            await world.add(f"other-{number}", 2)
        assert world.running.total() == SHARES.for_slow_and_new_groups
        world.hanging.add("slow")
        await world.add("slow", 30)
        assert world.running["slow"] == SHARES.of_group


async def test_namespaces_take_turns() -> None:
    async with World() as world:
        for number in range(100):
            world.queue.add(("large", number))
        world.queue.add(("small", 0))
        await settle()
        assert world.done.index(("small", 0)) < SHARES.of_group


async def test_a_worker_that_is_cancelled_while_it_waits_takes_no_key_with_it() -> None:
    async with World() as world:
        one, *others = world._workers
        one.cancel()
        world.queue.add(("team", 0))
        await settle()
        assert world.done == [("team", 0)]
        assert not any(other.done() for other in others)


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


def test_retries_of_a_group_keep_to_the_rate_after_a_burst(clock: StandingClock) -> None:
    rate = RetryRate(20.0, 3, 300.0, clock.time)
    assert [rate.reserve("a") for _ in range(5)] == pytest.approx([0, 0, 0, 0.05, 0.1])
    clock.advance(0.1)
    assert rate.reserve("a") == pytest.approx(0.05)
    clock.advance(3600.0)
    assert [rate.reserve("a") for _ in range(4)] == pytest.approx([0, 0, 0, 0.05])


def test_a_retry_waits_for_each_request_that_it_sends_again(clock: StandingClock) -> None:
    rate = RetryRate(20.0, 3, 300.0, clock.time)
    assert [rate.reserve("a", 10) for _ in range(3)] == pytest.approx([0, 0.5, 1.0])
    clock.advance(1.0)
    assert rate.reserve("a", 10) > 0


def test_a_group_waits_for_its_own_retries_and_not_for_those_of_others(
    clock: StandingClock,
) -> None:
    rate = RetryRate(20.0, 3, 300.0, clock.time)
    waits = [rate.reserve("many") for _ in range(1003)]
    assert waits[-1] == pytest.approx(1000 / 20)
    assert rate.reserve("one") == pytest.approx(2 / 20)


def test_groups_that_fail_together_share_the_rate(clock: StandingClock) -> None:
    rate = RetryRate(20.0, 0, 300.0, clock.time)
    waits = [rate.reserve(f"group-{number % 10}") for number in range(400)]
    assert max(waits) == pytest.approx(400 / 20, rel=0.2)


def test_no_turn_is_later_than_the_limit(clock: StandingClock) -> None:
    rate = RetryRate(20.0, 3, 300.0, clock.time)
    assert max(rate.reserve("a") for _ in range(60_000)) == 300.0


async def test_one_failure_is_retried_at_once_while_a_thousand_wait_in_another_namespace() -> None:
    world = World()
    tries: Counter[str] = Counter()

    async def fail(key: Key) -> None:
        tries[key[0]] += 1
        raise ClusterError("refused")

    workers = await run_workers(world.queue, fail, SHARES.workers)
    for _ in range(10):
        await world.add("many", 1000)
        while len(world.queue):
            await settle()
    await world.add("one")
    world.clock.advance(1.0)
    await settle()
    await stop(workers)
    assert tries["one"] >= 2
