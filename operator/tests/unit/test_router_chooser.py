"""Tests how the picker finds the replica that has stored a response or loaded an adapter, and what
it does with requests for which no replica will come.
"""

import asyncio
from dataclasses import replace
from typing import Literal

import pytest

from llmservice_operator.router.chooser import Chooser, Chosen
from llmservice_operator.router.held import NoReplicaComes
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.holding import Counts, Holding
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import MODEL, REPORT

PROMPT = Prompt((), 100)


def view(name: str, *, is_draining: bool = False) -> ReplicaView:
    return ReplicaView(name, f"10.0.0.{name[-1]}:8000", is_draining, None, 100_000)


def chooser(*names: str) -> Chooser:
    made = Chooser(Holding(Router(MODEL)), clock=lambda: 1000.0)
    made.update([view(name) for name in names])
    return made


def test_the_owner_is_the_only_replica_for_a_request_about_its_response() -> None:
    made = chooser("r1", "r2", "r3")
    made.note_owner("resp_1", "10.0.0.3:8000")
    chosen = [made.choose_owner("resp_1", PROMPT) for _ in range(3)]
    for each in chosen:
        assert each is not None
        assert (each.replica, list(each.addresses)) == ("r3", ["10.0.0.3:8000"])
    assert made.router.replicas["r3"].own_requests == 3
    assert chosen[0] is not None
    made.ended(chosen[0])
    assert made.router.replicas["r3"].own_requests == 2


def test_the_owner_gets_the_request_even_if_it_refused_another_one() -> None:
    made = chooser("r1", "r2")
    made.note_owner("resp_1", "10.0.0.1:8000")
    made.router.refused("r1")
    assert made.choose_owner("resp_1", PROMPT) is not None


def test_without_a_usable_owner_there_is_no_choice() -> None:
    made = chooser("r1", "r2")
    assert made.choose_owner("resp_1", PROMPT) is None
    # The forwarder or another pod has answered.
    made.note_owner("resp_1", "127.0.0.1:9003")
    assert made.choose_owner("resp_1", PROMPT) is None
    made.note_owner("resp_1", "10.0.0.1:8000")
    made.update([view("r1", is_draining=True), view("r2")])
    assert made.choose_owner("resp_1", PROMPT) is None


def test_a_replica_that_has_ended_owns_nothing() -> None:
    made = chooser("r1", "r2")
    made.note_owner("resp_1", "10.0.0.1:8000")
    made.update([view("r2")])
    made.update([view("r1"), view("r2")])
    assert made.choose_owner("resp_1", PROMPT) is None
    assert len(made.owners) == 0


@pytest.mark.parametrize("policy", ["LeastWork", "LeastRequest"])
def test_replicas_that_have_loaded_the_adapter_come_first_and_second(
    policy: Literal["LeastWork", "LeastRequest"],
) -> None:
    report = replace(REPORT, at=1000.0)
    made = Chooser(Holding(Router(MODEL)), policy, clock=lambda: 1000.0)
    made.update(
        [
            replace(view(name), report=report, adapters=adapters)
            for name, adapters in (("r1", ()), ("r2", ("sql", "tone")), ("r3", ("sql",)))
        ]
    )
    for _ in range(4):
        chosen = made.choose_now(replace(PROMPT, adapter="sql"))
        assert chosen is not None
        assert sorted(chosen.addresses) == ["10.0.0.2:8000", "10.0.0.3:8000"]
    plain = made.choose_now(PROMPT)
    assert plain is not None
    assert plain.replica == "r1"
    # An adapter that no replica has loaded decides nothing.
    assert made.choose_now(replace(PROMPT, adapter="new")) is not None


@pytest.mark.parametrize("age", [0.0, 3600.0])
async def test_a_pick_tells_its_reason(age: float) -> None:
    made = Chooser(Holding(Router(MODEL)), clock=lambda: 1000.0)
    reported = replace(view("r1"), report=replace(REPORT, at=1000.0 - age))

    async def find() -> None:
        made.update([reported])

    held = await made.choose(PROMPT, 0, "", 5.0, on_wait=find)
    at_once = await made.choose(PROMPT, 0, "", 5.0, on_wait=find)
    assert held is not None
    assert at_once is not None
    assert held.reason == "held"
    assert at_once.reason == ("least_requests" if age else "least_work")


async def leave(made: Chooser, *, after: float, wait: float, waits_elsewhere: bool) -> Counts:
    """Let a request wait, and let its client leave; return the counters."""
    time = [1000.0]
    made.clock = lambda: time[0]
    is_waiting = asyncio.Event()

    async def note() -> None:
        is_waiting.set()

    choice = made.choose(PROMPT, 0, "", wait, note, waits_elsewhere=waits_elsewhere)
    waiting = asyncio.create_task(choice)
    await is_waiting.wait()
    time[0] += after
    waiting.cancel()
    await asyncio.wait([waiting])
    return made.holding.counts


@pytest.mark.parametrize(
    ("after", "wait", "waits_elsewhere", "expected"),
    [
        (59.0, 60.0, False, Counts(arrived=1)),
        (59.95, 60.0, False, Counts(arrived=1, timed_out=1)),
        (9.95, 10.0, True, Counts(arrived=1, released=1)),
        (0.0, 0.0, False, Counts(arrived=1)),
    ],
)
async def test_a_client_that_leaves_at_the_end_of_its_wait_has_waited_in_full(
    after: float, wait: float, *, waits_elsewhere: bool, expected: Counts
) -> None:
    counts = await leave(chooser(), after=after, wait=wait, waits_elsewhere=waits_elsewhere)
    assert counts == expected


GONE = "the service is suspended"


async def hold(made: Chooser) -> "asyncio.Task[Chosen | None]":
    """Send a request that waits for a replica."""

    async def waits() -> None:
        waiting.set()

    waiting = asyncio.Event()
    task = asyncio.create_task(made.choose(PROMPT, 1, "", 60.0, waits))
    await waiting.wait()
    return task


async def test_waiting_requests_are_refused_as_soon_as_no_replica_will_come() -> None:
    made = chooser()
    assert not made.holds.is_set()
    waiting = [await hold(made) for _ in range(3)]
    assert made.holds.is_set()
    made.update([], GONE)
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, NoReplicaComes)
        assert str(each) == GONE
    assert (len(made.holding), made.holds.is_set()) == (0, False)


async def test_later_requests_are_refused_without_a_wait_until_a_replica_may_come() -> None:
    made = chooser()
    made.update([], GONE)
    with pytest.raises(NoReplicaComes, match=GONE):
        await made.choose(PROMPT, 1, "", 60.0, never)
    assert len(made.holding) == 0
    made.update([])
    waiting = await hold(made)
    made.update([view("r1")])
    chosen = await waiting
    assert chosen is not None
    assert chosen.replica == "r1"


async def never() -> None:
    raise AssertionError("the request waits")


async def test_a_replica_gets_requests_although_no_other_will_come() -> None:
    made = chooser("r1")
    made.update([view("r1")], GONE)
    chosen = await made.choose(PROMPT, 1, "", 60.0, never)
    assert chosen is not None
    assert chosen.replica == "r1"


async def test_a_client_that_leaves_while_its_request_is_refused_leaves_nothing_behind() -> None:
    made = chooser()
    waiting = await hold(made)
    made.update([], GONE)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert (len(made.holding), made.holds.is_set()) == (0, False)
