import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmservice_operator.errors import ClusterError, Conflict, NotFound
from llmservice_operator.leader import Leader, LeaderSettings
from shared_support.waiting import PATIENCE

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A Lease on a server, and a clock that moves only while every candidate sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.lease: dict[str, Any] | None = None
        self.writes: list[str] = []
        self.fail: Exception | None = None
        self.fail_reads: Exception | None = None
        self.hang = False
        self.after_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.seconds

    def holder(self) -> str | None:
        return None if self.lease is None else self.lease["spec"]["holderIdentity"]

    async def read_lease(self) -> dict[str, Any] | None:
        if self.fail or self.fail_reads:
            raise self.fail or self.fail_reads or AssertionError
        return self.lease

    async def create_lease(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        if self.lease is not None:
            raise Conflict("exists", 409)
        return self._write(spec)

    async def replace_lease(
        self, lease: Mapping[str, Any], spec: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.hang:
            await asyncio.Event().wait()
        if self.fail:
            raise self.fail
        if self.lease is None:
            raise NotFound("gone", 404)
        if lease["metadata"] != self.lease["metadata"]:
            raise Conflict("changed", 409)
        return self._write(spec)

    def _write(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        version = str(len(self.writes) + 1)
        self.lease = {"metadata": {"resourceVersion": version}, "spec": dict(spec)}
        self.writes.append(spec["holderIdentity"])
        return self.lease


class Candidate:
    """A Leader whose sleeps a test ends."""

    def __init__(
        self,
        world: World,
        name: str,
        skew: timedelta = timedelta(),
        settings: LeaderSettings | None = None,
    ) -> None:
        self.world = world
        self.lost = False
        self.slept = 0.0
        """Duration of the last sleep in seconds."""
        self._wake = asyncio.Event()
        self._asleep = asyncio.Event()
        self.leader = Leader(
            world,
            name,
            settings,
            on_lost=self._on_lost,
            monotonic=world.monotonic,
            now=lambda: START + skew + timedelta(seconds=world.seconds),
            sleep=self._sleep,
        )
        self.task = asyncio.create_task(self.leader.run())

    def _on_lost(self) -> None:
        self.lost = True

    async def _sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 2.0
        self.slept = seconds
        self._asleep.set()
        await self._wake.wait()
        self._wake.clear()

    async def until_asleep(self) -> None:
        waiter = asyncio.create_task(self._asleep.wait())
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait([waiter, self.task], return_when=first, timeout=PATIENCE)
        waiter.cancel()

    async def step(self) -> None:
        """End one sleep, and run the candidate until it sleeps again or stops."""
        self._asleep.clear()
        self._wake.set()
        await self.until_asleep()

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_first_candidate_creates_the_lease_and_renews_it() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()

    assert first.leader.elected.is_set()
    assert world.lease is not None
    assert world.lease["spec"] == {
        "holderIdentity": "first",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 0,
    }
    world.seconds += 2
    await first.step()
    assert world.lease["spec"]["renewTime"] == "2026-01-01T00:00:02.000000Z"
    assert world.lease["spec"]["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    await first.kill()


async def test_the_holder_restores_the_duration_of_the_lease() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    assert world.lease is not None
    world._write({**world.lease["spec"], "leaseDurationSeconds": 86400})
    world.seconds += 2
    await first.step()
    assert world.lease["spec"]["leaseDurationSeconds"] == 15
    assert first.leader.is_holding()
    await first.kill()


async def test_a_second_candidate_waits_while_the_lease_is_renewed() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    second = Candidate(world, "second")
    await second.until_asleep()
    for _ in range(60):
        world.seconds += 2
        await first.step()
        await second.step()
    assert set(world.writes) == {"first"}
    assert not second.leader.elected.is_set()
    await first.kill()
    await second.kill()


@pytest.mark.parametrize("skew", [timedelta(hours=1), timedelta(hours=-1), timedelta()])
async def test_a_candidate_takes_over_from_a_dead_leader_after_its_lease_time_on_any_clock(
    skew: timedelta,
) -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    await first.kill()
    second = Candidate(world, "second", skew)
    await second.until_asleep()
    for _ in range(8):
        assert not second.leader.elected.is_set()
        world.seconds += second.slept
        await second.step()

    assert second.leader.elected.is_set()
    assert world.seconds == 15
    assert world.holder() == "second"
    assert world.lease is not None
    assert world.lease["spec"]["leaseTransitions"] == 1
    await second.kill()


async def test_a_released_lease_is_taken_at_once() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    second = Candidate(world, "second")
    await second.until_asleep()

    await first.kill()
    await first.leader.release()
    assert world.holder() == ""
    assert not first.leader.is_holding()
    world.seconds += 2
    await second.step()

    assert world.holder() == "second"
    await second.kill()


async def test_release_without_the_lease_writes_nothing() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    second = Candidate(world, "second")
    await second.until_asleep()
    await second.kill()
    await second.leader.release()
    assert world.writes == ["first"]
    await first.kill()


async def test_a_release_that_fails_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    await first.kill()
    world.fail = ClusterError("no answer")
    await first.leader.release()
    assert "will expire instead: no answer" in caplog.text


async def test_the_process_ends_when_renewals_fail_for_ten_seconds() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world.fail = ClusterError("no answer")
    for _ in range(4):
        world.seconds += 2
        await first.step()
        assert first.leader.is_holding()
    world.seconds += 2
    await first.step()
    assert not first.leader.is_holding()
    assert first.lost
    await first.task


async def test_a_longer_lease_gives_the_leader_more_time_to_renew_it() -> None:
    world = World()
    first = Candidate(world, "first", settings=LeaderSettings(60))
    await first.until_asleep()
    assert world.lease is not None
    assert world.lease["spec"]["leaseDurationSeconds"] == 60
    world.fail = ClusterError("no answer")
    for _ in range(19):
        world.seconds += 2
        await first.step()
        assert first.leader.is_holding()
    world.seconds += 2
    await first.step()
    assert first.lost
    await first.task


async def test_a_short_outage_does_not_stop_the_leader() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world.fail = ClusterError("no answer")
    for _ in range(4):
        world.seconds += 2
        await first.step()
    world.fail = None
    await first.step()
    world.seconds += 8
    assert first.leader.is_holding()
    assert not first.lost
    await first.kill()


async def test_a_process_that_slept_past_the_deadline_may_not_write_when_it_wakes() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world.seconds += 20
    assert first.leader.elected.is_set()
    assert not first.leader.is_holding()
    await first.kill()


@pytest.mark.parametrize("holder", ["usurper", "", None])
async def test_a_leader_whose_lease_names_another_holder_stops_at_the_next_check(
    holder: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world._write({"holderIdentity": holder, "leaseDurationSeconds": 15})
    world.seconds += 2
    await first.step()
    assert first.lost
    assert not first.leader.is_holding()
    assert world.holder() == holder
    assert f"its holder is {holder or 'nobody'}" in caplog.text


async def test_a_leader_whose_lease_was_deleted_stops_at_the_next_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world.lease = None
    world.seconds += 2
    await first.step()
    assert first.lost
    assert not first.leader.is_holding()
    assert world.lease is None
    assert "it was deleted" in caplog.text


async def test_after_a_lease_was_deleted_two_leaders_overlap_for_at_most_a_retry_period() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    second = Candidate(world, "second")
    await second.until_asleep()
    world.lease = None
    world.seconds += 2
    await second.step()
    assert second.leader.is_holding()
    await first.step()
    assert not first.leader.is_holding()
    assert world.holder() == "second"
    await second.kill()


async def test_a_leader_writes_nothing_while_it_does_not_know_who_changed_the_lease() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    assert world.lease is not None
    world._write(world.lease["spec"])
    world.fail_reads = ClusterError("no answer")
    world.seconds += 2
    await first.step()
    assert not first.leader.is_holding()
    assert not first.lost
    world.fail_reads = None
    world.seconds += 2
    await first.step()
    assert first.leader.is_holding()
    await first.kill()


async def test_a_write_whose_answer_was_lost_is_recognised() -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    assert world.lease is not None
    world._write(world.lease["spec"])
    for _ in range(8):
        world.seconds += 2
        await first.step()
    assert not first.lost
    assert first.leader.is_holding()
    await first.kill()


async def test_of_two_candidates_that_start_together_only_one_is_elected() -> None:
    world = World()
    candidates = [Candidate(world, name) for name in ("first", "second")]
    for candidate in candidates:
        await candidate.until_asleep()
    assert sum(candidate.leader.elected.is_set() for candidate in candidates) == 1
    for candidate in candidates:
        await candidate.kill()


async def test_a_renewal_that_hangs_ends_at_the_deadline_not_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    first = Candidate(world, "first")
    await first.until_asleep()
    world.hang = True
    # The deadline is in 20 ms, so the attempt may take only 20 ms.
    world.seconds += 9.98
    waited = asyncio.get_running_loop().time()
    await first.step()
    assert asyncio.get_running_loop().time() - waited < 2
    assert "the lease could not be written: timed out" in caplog.text
    await first.kill()
