"""The stream by which a picker follows another one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from llmservice_operator.router import followers as followers_module
from llmservice_operator.router import following as following_module
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.followers import METHOD, SERVICE, Followers
from llmservice_operator.router.following import Following
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from operator_support.processes import free_port
from operator_support.replica_reports import MODEL
from router_support.pod import snapshot
from shared_support.waiting import eventually_in_loop

IDENTITY = "team-a/chat"
PROMPT = Prompt(tuple(range(2**64 - 40, 2**64)), 40 * 1024)


def chooser() -> Chooser:
    made = Chooser(Holding(Router(MODEL)))
    made.update(
        [ReplicaView(f"r{at}", f"10.0.0.{at}:8000", False, snapshot(), 1e6) for at in range(3)]
    )
    return made


@dataclass
class Leader:
    """A picker that others follow, without Envoy."""

    port: int = field(default_factory=free_port)
    chooser: Chooser = field(default_factory=chooser)
    is_ready: bool = True
    refusals: int = 0
    _server: Any = None

    def __post_init__(self) -> None:
        self.followers = Followers(self.chooser, IDENTITY, self._is_ready)
        self.followers.admit([self.address])
        self.chooser.tell = self.followers.tell

    def _is_ready(self) -> bool:
        self.refusals += 1
        return self.is_ready

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self.followers.handler(),))
        self._server.add_insecure_port(f"[::]:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=None)


@asynccontextmanager
async def leading() -> AsyncIterator[Leader]:
    leader = Leader()
    await leader.start()
    try:
        yield leader
    finally:
        await leader.stop()


@dataclass
class Follower:
    """A picker that follows others, without Envoy."""

    chooser: Chooser
    following: Following

    @property
    def is_ready(self) -> bool:
        return self.following.is_ready

    @property
    def requests(self) -> int:
        return sum(requests(self.chooser).values())


@asynccontextmanager
async def following(*leaders: Leader) -> AsyncIterator[Follower]:
    own = chooser()
    made = Following(own, IDENTITY)
    made.update([each.address for each in leaders])
    try:
        yield Follower(own, made)
    finally:
        await made.close()


def requests(picker: Chooser) -> dict[str, int]:
    return {name: each.own_requests for name, each in picker.router.replicas.items()}


def blocks(picker: Chooser) -> int:
    return sum(len(each.index) for each in picker.router.replicas.values())


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_picker_is_ready_when_it_has_a_copy_and_then_follows() -> None:
    async with leading() as leader:
        early = leader.chooser.choose_now(PROMPT)
        async with following(leader) as follower:
            assert not follower.is_ready
            await eventually_in_loop(lambda: follower.is_ready)
            assert blocks(follower.chooser) == len(PROMPT.chain)
            late = leader.chooser.choose_now(Prompt((1, 2, 3), 3072))
            assert early
            assert late
            await eventually_in_loop(
                lambda: (
                    (requests(follower.chooser), blocks(follower.chooser))
                    == (requests(leader.chooser), len(PROMPT.chain) + 3)
                )
            )
            leader.chooser.note_owner("response-1", late.addresses[0])
            leader.chooser.started(early, early.addresses[0])
            leader.chooser.ended(early)
            leader.chooser.ended(late)
            await eventually_in_loop(lambda: follower.requests == 0)
            assert follower.chooser.owners.find("response-1") == late.replica


async def test_a_picker_without_another_one_is_ready_at_once() -> None:
    async with following() as alone:
        assert alone.is_ready


async def test_a_picker_does_not_wait_for_one_that_is_away() -> None:
    async with following(Leader()) as follower:
        await eventually_in_loop(lambda: follower.is_ready, within=1)


async def test_two_pickers_that_start_together_do_not_wait_for_each_other() -> None:
    async with leading() as leader:
        leader.is_ready = False
        leader.followers.admit([])
        async with following(leader) as follower:
            await eventually_in_loop(lambda: follower.is_ready, within=1)


@pytest.mark.parametrize("stranger", ["address", "service"])
async def test_a_stranger_gets_no_copy(stranger: str) -> None:
    async with leading() as leader:
        leader.chooser.choose_now(PROMPT)
        if stranger == "address":
            leader.followers.admit(["10.0.0.9:9002"])
        identity = (IDENTITY if stranger == "address" else "team-b/chat").encode()
        async with grpc.aio.insecure_channel(leader.address) as channel:
            call = channel.unary_stream(f"/{SERVICE}/{METHOD}")(identity)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert IDENTITY not in refused.value.details()


async def test_a_picker_that_is_not_known_yet_waits_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with leading() as leader:
        leader.chooser.choose_now(PROMPT)
        leader.followers.admit([])
        async with following(leader) as follower:
            await eventually_in_loop(lambda: leader.refusals > 2)
            assert not follower.is_ready
            leader.followers.admit([leader.address])
            await eventually_in_loop(lambda: follower.is_ready)
            assert blocks(follower.chooser) == len(PROMPT.chain)

        leader.followers.admit([])
        monkeypatch.setattr(following_module, "WAIT_SECONDS", 0.5)
        async with following(leader) as follower:
            await eventually_in_loop(lambda: follower.is_ready)
            assert blocks(follower.chooser) == 0


async def test_the_requests_of_a_picker_that_ends_are_forgotten_and_it_is_followed_again() -> None:
    async with leading() as leader:
        leader.chooser.choose_now(PROMPT)
        async with following(leader) as follower:
            await eventually_in_loop(lambda: follower.requests == 1)
            await leader.stop()
            await eventually_in_loop(lambda: follower.requests == 0)
            assert follower.is_ready
            await leader.start()
            await eventually_in_loop(lambda: follower.requests == 1)


async def test_a_picker_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "SILENCE_SECONDS", 0.2)
    async with leading() as leader:
        leader.chooser.choose_now(PROMPT)
        async with following(leader) as follower:
            # The leader sends its next message only after a second.
            await eventually_in_loop(lambda: follower.requests == 1)
            await eventually_in_loop(lambda: follower.requests == 0)


async def test_a_slow_follower_is_dropped_and_keeps_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(followers_module, "WRITE_SECONDS", 0.5)
    async with leading() as leader:
        async with grpc.aio.insecure_channel(leader.address) as channel:
            call = channel.unary_stream(f"/{SERVICE}/{METHOD}")(IDENTITY.encode())
            await call.read()
            for _ in range(1000):  # 11 MB, of which the follower reads nothing
                leader.chooser.choose_now(Prompt(tuple(range(2**63, 2**63 + 1024)), 1024**2))
            with pytest.raises(grpc.aio.AioRpcError) as dropped:
                await read_all(call)
            assert dropped.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # The client may hear of it before the call has ended here.
        await eventually_in_loop(lambda: len(leader.followers) == 0)


async def test_a_new_call_of_a_follower_replaces_its_last_one() -> None:
    async with leading() as leader, following(leader) as first, following(leader) as second:
        await eventually_in_loop(lambda: first.is_ready and second.is_ready)
        assert len(leader.followers) == 1
