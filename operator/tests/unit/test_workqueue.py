import asyncio
import itertools

import pytest

from llmservice_operator.errors import ClusterError
from llmservice_operator.workqueue import QueueSettings, WorkQueue
from operator_support.workqueue import Observer, StandingClock, run_workers, settle, stop
from shared_support.waiting import PATIENCE, eventually_in_loop


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
async def queue(clock: StandingClock, observer: Observer) -> WorkQueue[str]:
    return WorkQueue(observer, clock=clock, uniform=lambda low, high: 0.0)


async def test_a_key_added_many_times_is_processed_once(
    queue: WorkQueue[str], observer: Observer
) -> None:
    seen: list[str] = []

    async def process(key: str) -> None:
        seen.append(key)

    for _ in range(5):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2

    await stop(await run_workers(queue, process))

    assert seen == ["a", "b"]
    assert observer.adds == 2
    assert observer.results == ["success", "success"]


async def test_a_key_is_never_processed_twice_at_once_but_once_more_when_added_meanwhile(
    queue: WorkQueue[str],
) -> None:
    running = 0
    passes = 0
    gate = asyncio.Event()

    async def process(key: str) -> None:
        nonlocal running, passes
        running += 1
        passes += 1
        assert running == 1
        await gate.wait()
        running -= 1

    queue.add("a")
    workers = await run_workers(queue, process, count=4)
    queue.add("a")
    queue.add("a")
    await settle()
    assert passes == 1
    assert queue.busy() == 1

    gate.set()
    await settle()
    await stop(workers)
    assert passes == 2
    assert queue.busy() == 0


async def test_different_keys_are_processed_side_by_side(queue: WorkQueue[str]) -> None:
    gate = asyncio.Event()
    begun: list[str] = []

    async def process(key: str) -> None:
        begun.append(key)
        await gate.wait()

    for key in "abc":
        queue.add(key)
    workers = await run_workers(queue, process, count=2)

    assert begun == ["a", "b"]
    gate.set()
    await settle()
    assert begun == ["a", "b", "c"]
    await stop(workers)


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        pytest.param(TypeError("unhashable"), 300.0, id="a fault"),
        # Services must be reconciled soon after an outage.
        pytest.param(ClusterError("no answer"), 30.0, id="an outage"),
    ],
)
async def test_a_failing_key_is_retried_with_a_doubling_backoff_up_to_the_limit(
    queue: WorkQueue[str],
    clock: StandingClock,
    observer: Observer,
    error: Exception,
    limit: float,
) -> None:
    times: list[float] = []

    async def process(key: str) -> None:
        times.append(clock.time())
        raise error

    queue.add("a")
    workers = await run_workers(queue, process)
    for _ in range(30):
        clock.advance(limit)
        await settle()
    await stop(workers)

    assert observer.results == ["error"] * 31
    assert observer.retries == 31
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) == limit


async def test_backoff_starts_at_five_milliseconds_and_doubles(
    queue: WorkQueue[str], clock: StandingClock
) -> None:
    times: list[float] = []

    async def process(key: str) -> None:
        times.append(clock.time())
        raise ClusterError("no answer")

    queue.add("a")
    workers = await run_workers(queue, process)
    for _ in range(2000):
        clock.advance(0.001)
        await settle()
        if len(times) == 6:
            break
    await stop(workers)

    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08], abs=0.0011)


async def test_backoff_is_jittered_by_a_tenth(clock: StandingClock, observer: Observer) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    queue: WorkQueue[str] = WorkQueue(
        observer, QueueSettings(backoff_min_seconds=1.0), clock, uniform
    )
    passes = 0

    async def process(key: str) -> None:
        nonlocal passes
        passes += 1
        raise ClusterError("no answer")

    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(1.09)
    await settle()
    assert passes == 1
    clock.advance(0.02)
    await settle()
    await stop(workers)

    assert passes == 2
    assert asked[0] == (-0.1, 0.1)


async def test_success_resets_the_backoff(queue: WorkQueue[str], clock: StandingClock) -> None:
    fail = True
    passes = 0

    async def process(key: str) -> None:
        nonlocal passes
        passes += 1
        if fail:
            raise ClusterError("no answer")

    queue.add("a")
    workers = await run_workers(queue, process)
    for _ in range(8):
        clock.advance(10.0)
        await settle()
    fail = False
    clock.advance(10.0)
    await settle()
    fail = True
    queue.add("a")
    await settle()
    before = passes
    clock.advance(0.006)
    await settle()
    await stop(workers)
    assert passes == before + 1


async def test_a_retry_waits_as_long_as_the_api_server_demanded(
    queue: WorkQueue[str], clock: StandingClock
) -> None:
    passes = 0

    async def process(key: str) -> None:
        nonlocal passes
        passes += 1
        raise ClusterError("too many requests", 429, retry_after_seconds=7.0)

    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(6.9)
    await settle()
    assert passes == 1
    clock.advance(0.2)
    await settle()
    await stop(workers)
    assert passes == 2


@pytest.mark.parametrize("asked", [86_400.0, 1e300])
async def test_no_retry_waits_longer_than_the_limit_whatever_the_api_server_asks(
    queue: WorkQueue[str], clock: StandingClock, asked: float
) -> None:
    passes = 0

    async def process(key: str) -> None:
        nonlocal passes
        passes += 1
        raise ClusterError("too many requests", 429, retry_after_seconds=asked)

    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(300.0)
    await settle()
    await stop(workers)
    assert passes == 2


async def test_no_retry_waits_longer_than_the_limit_however_many_keys_fail_however_often(
    clock: StandingClock, observer: Observer
) -> None:
    """Events start passes that wait for no retry, so far more passes than retries can fail."""
    queue: WorkQueue[int] = WorkQueue(
        observer, clock=clock, uniform=lambda low, high: high, group_of=lambda _: "team"
    )
    passes = 0

    async def process(key: int) -> None:
        nonlocal passes
        passes += 1
        raise ClusterError("refused")

    workers = await run_workers(queue, process)
    for _ in range(20):
        for key in range(1000):
            queue.add(key)
        while len(queue):
            await settle()
        clock.advance(0.01)
        await settle()
    before = passes
    clock.advance(300.0)
    while len(queue):
        await settle()
    await stop(workers)
    assert passes >= before + 1000


async def test_a_pass_that_was_cut_off_is_not_tried_again_before_as_long_has_gone_by(
    queue: WorkQueue[str], clock: StandingClock
) -> None:
    passes = 0

    async def process(key: str) -> None:
        nonlocal passes
        passes += 1
        clock.advance(60.0)
        raise ClusterError("no answer")

    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(59.0)
    await settle()
    assert passes == 1
    clock.advance(2.0)
    await settle()
    await stop(workers)
    assert passes == 2


async def test_an_unexpected_error_does_not_end_the_worker(
    queue: WorkQueue[str], observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    async def process(key: str) -> None:
        if key == "bad":
            raise ZeroDivisionError

    queue.add("bad")
    queue.add("good")
    await stop(await run_workers(queue, process))

    assert observer.results == ["error", "success"]
    assert "unexpected error" in caplog.text


async def test_a_pass_that_takes_too_long_is_cancelled_and_retried(
    clock: StandingClock, observer: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    queue: WorkQueue[str] = WorkQueue(observer, QueueSettings(timeout_seconds=0.01), clock)

    async def process(key: str) -> None:
        await asyncio.Event().wait()

    queue.add("a")
    workers = await run_workers(queue, process)
    async with asyncio.timeout(PATIENCE):
        while not observer.results:
            await settle()
    await stop(workers)

    assert observer.results == ["timeout"]
    assert observer.retries == 1
    assert "was cancelled; it is retried" in caplog.text


async def test_a_foreign_cancellation_inside_a_pass_does_not_end_the_worker(
    queue: WorkQueue[str], observer: Observer
) -> None:
    async def process(key: str) -> None:
        if key == "cut":
            inner = asyncio.create_task(asyncio.Event().wait())
            inner.cancel()
            await inner

    queue.add("cut")
    queue.add("next")
    workers = await run_workers(queue, process)
    assert observer.results == ["error", "success"]
    assert not workers[0].done()
    await stop(workers)
    assert workers[0].cancelled()


async def test_a_timed_key_is_processed_when_its_time_has_come(
    queue: WorkQueue[str], clock: StandingClock, observer: Observer
) -> None:
    seen: list[float] = []

    async def process(key: str) -> float | None:
        seen.append(clock.time())
        return 10.0 if len(seen) == 1 else None

    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(9.9)
    await settle()
    assert len(seen) == 1
    clock.advance(0.1)
    await settle()
    await stop(workers)

    assert seen == pytest.approx([0.0, 10.0])
    assert observer.results == ["requeue_after", "success"]


async def test_only_the_earliest_of_several_timers_fires_and_only_once(
    queue: WorkQueue[str], clock: StandingClock
) -> None:
    seen: list[float] = []

    async def process(key: str) -> None:
        seen.append(clock.time())

    queue.add_after("a", 10.0)
    queue.add_after("a", 3.0)
    queue.add_after("a", 7.0)
    workers = await run_workers(queue, process)
    for _ in range(12):
        clock.advance(1.0)
        await settle()
    await stop(workers)
    assert seen == [3.0]


async def test_an_immediate_pass_replaces_the_timed_one(
    queue: WorkQueue[str], clock: StandingClock
) -> None:
    seen: list[float] = []

    async def process(key: str) -> None:
        seen.append(clock.time())

    queue.add_after("a", 10.0)
    queue.add("a")
    workers = await run_workers(queue, process)
    clock.advance(20.0)
    await settle()
    await stop(workers)
    assert seen == [0.0]


async def test_the_observer_gets_the_times_that_keys_wait_and_passes_run(
    queue: WorkQueue[str], clock: StandingClock, observer: Observer
) -> None:
    async def process(key: str) -> None:
        await asyncio.Event().wait()

    queue.add("a")
    clock.advance(2.0)
    workers = await run_workers(queue, process, count=2)
    clock.advance(3.0)
    queue.add("b")
    await settle()
    clock.advance(1.0)

    assert observer.waits == [2.0, 0.0]
    assert queue.longest_running_seconds() == 4.0
    assert queue.unfinished_seconds() == 5.0
    await stop(workers)
    assert queue.longest_running_seconds() == 0.0


async def test_passes_that_wait_for_nothing_let_other_tasks_run_between_them(
    queue: WorkQueue[str],
) -> None:
    loop = asyncio.get_running_loop()
    others: list[str] = []
    """Keys whose pass was followed by an iteration of the event loop."""
    seen: list[int] = []

    async def process(key: str) -> None:
        loop.call_soon(others.append, key)
        seen.append(len(others))

    workers = await run_workers(queue, process)
    for number in range(100):
        queue.add(f"service-{number}")
    await eventually_in_loop(lambda: len(seen) == 100)
    await stop(workers)
    # Without iterations of the loop between passes, no callback would run before the last pass.
    assert seen[-1] >= 90
