"""Tests that two replicas never write at the same time, even if the leader ends, hangs, is cut off
or loses its Lease.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

from llmservice_operator.kinds import LLMSERVICES
from operator_support.fault_proxy import Seen
from operator_support.fault_sample import IS_LONG, SEED, drawn
from operator_support.processes import Api, ApiError, make_service
from operator_support.replicas import Replica, Replicas, replicas
from shared_support.waiting import eventually, holds_for

ROUNDS = 50 if IS_LONG else 1
GRACEFUL_SECONDS = 4.0
CRASH_SECONDS = 20.0
OVERLAP_SECONDS = 2.0
"""Maximum time in seconds that the earlier leader keeps writing after its Lease was deleted."""
SKEW_HOLDS_SECONDS = 5.0


@dataclass(frozen=True)
class Round:
    begin: Callable[[Replicas, Replica], object]
    within: float | None
    """Maximum time in seconds until another replica writes; None if the leader stays the same."""
    end: Callable[[Replica], object] = lambda _: None
    """Called once another replica has written."""
    overlap: float = 0.0


ROUNDS_BY_NAME = {
    "SIGTERM": Round(lambda _, leader: leader.signal(signal.SIGTERM), GRACEFUL_SECONDS),
    "SIGKILL": Round(lambda _, leader: leader.signal(signal.SIGKILL), CRASH_SECONDS),
    "SIGSTOP": Round(
        lambda _, leader: leader.signal(signal.SIGSTOP),
        CRASH_SECONDS,
        lambda leader: leader.signal(signal.SIGCONT),
    ),
    "partition": Round(
        lambda _, leader: leader.cut_off(),
        CRASH_SECONDS,
        lambda leader: leader.proxy.faults.clear(),
    ),
    "Lease deleted": Round(
        lambda running, _: running.delete_lease(), CRASH_SECONDS, overlap=OVERLAP_SECONDS
    ),
    "an hour early": Round(lambda running, _: running.skew(timedelta(hours=-1)), None),
    "an hour late": Round(lambda running, _: running.skew(timedelta(hours=1)), None),
}


@contextmanager
def churn(api: Api, namespace: str) -> Iterator[None]:
    """Change a service all the time, so that the leader always has something to write."""
    stop = threading.Event()
    api.create(LLMSERVICES, make_service("llm", namespace))

    def change() -> None:
        own, number = Api(), 0
        while not stop.wait(0.25):
            number += 1
            with suppress(ApiError):
                own.patch(LLMSERVICES, namespace, "llm", {"spec": {"replicas": 1 + number % 2}})

    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def test_whatever_happens_to_the_leader_one_replica_writes_at_a_time_and_another_follows_soon(
    api: Api, namespace: str, tmp_path: Path
) -> None:
    overlaps: dict[str, float] = {}
    with replicas(api, namespace, tmp_path) as running, churn(api, namespace):
        for name in drawn(list(ROUNDS_BY_NAME), ROUNDS):
            what, leader = ROUNDS_BY_NAME[name], running.leader()
            before = eventually(partial(agent_of, leader), 20, "the leader writes")
            begin = time.monotonic()
            what.begin(running, leader)
            if what.within is None:
                holds_for(SKEW_HOLDS_SECONDS, leader.process.is_running)
                late = {each.agent for each in running.writes() if each.at > begin + 1}
                assert late == {before}, name
                continue

            def follower(begin: float = begin, before: str = before) -> Seen | None:
                found = (each for each in running.writes() if each.at > begin)
                return next((each for each in found if each.agent != before), None)

            # The wait is longer than the limit, so that the time of a late write is still measured.
            first = eventually(follower, what.within + 10, f"{name}: another replica writes")
            took = first.at - begin
            print(f"{name}: another replica wrote after {took:.1f} s")
            assert took <= what.within, name
            overlaps[before] = what.overlap
            what.end(leader)
            assert leader.process.wait(30) is not None
            running.fill_up()
        check_one_at_a_time(running.writes(), overlaps)


def agent_of(leader: Replica) -> str:
    """Return the user agent of a leader that has written."""
    return next((each.agent for each in leader.proxy.writes() if each.status == 200), "")


def check_one_at_a_time(writes: list[Seen], overlaps: dict[str, float]) -> None:
    """Check that no replica writes after another replica has begun to write.

    `overlaps` maps a replica's user agent to the time in seconds that the replica may keep writing
    after its successor has begun.
    """
    first: dict[str, float] = {}
    for each in writes:
        first.setdefault(each.agent, each.at)
    terms = sorted(first.items(), key=lambda each: each[1])
    next_begin = {agent: begin for (agent, _), (__, begin) in pairwise(terms)}
    for each in writes:
        until = next_begin.get(each.agent, each.at) + overlaps.get(each.agent, 0.0)
        assert each.at <= until, (
            f"{each.agent} wrote {each.at - until:.2f} s too late (seed {SEED})"
        )
