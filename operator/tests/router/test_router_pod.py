"""A whole router pod: the supervisor, Envoy, the picker and the forwarder."""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import pytest
import pytest_asyncio

from llmservice_operator.names import ATTEMPT_HEADER, HELD_HEADER
from llmservice_operator.router.replicas import CONFIRMED_SECONDS, PERIOD_SECONDS
from router_support.whole_pod import (
    CHAT,
    DONE,
    PLAIN,
    STREAM,
    RouterPod,
    ServedReplica,
    addresses,
    router_pod,
    until,
)
from shared_support.waiting import eventually_in_loop

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMENT = b": waiting for a replica\n\n"


@dataclass
class Bench:
    pod: RouterPod
    first: ServedReplica
    second: ServedReplica

    async def post(self, body: Mapping[str, object]) -> tuple[int, bytes]:
        async with self.pod.client.post(CHAT, json=body) as answer:
            return answer.status, await answer.read()

    async def reset(self) -> None:
        """Make both replicas ready, and let DNS name them."""
        for each in (self.first, self.second):
            each.phase, each.is_draining, each.first_token = "ready", False, None
            each.requests.clear()
            if not each.is_serving:
                await each.start()
        self.pod.names.fails = False
        self.pod.names.addresses = [self.first.address, self.second.address]
        await self.pod.knows(self.first, self.second)

    async def lose_all(self) -> None:
        self.first.phase = self.second.phase = "loading"
        await self.pod.knows()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    one, other = addresses(2)
    replicas = ServedReplica(one, "chat-1"), ServedReplica(other, "chat-2")
    folder = tmp_path_factory.mktemp("pod")
    async with router_pod(folder, *replicas, hold_timeout_seconds=4) as pod:
        yield Bench(pod, *replicas)


@pytest_asyncio.fixture(loop_scope="module")
async def bench(started: Bench) -> Bench:
    await started.reset()
    return started


@pytest.mark.parametrize("name", ["picker", "forwarder", "envoy"])
async def test_a_process_that_dies_starts_again(bench: Bench, name: str) -> None:
    supervisor = bench.pod.supervisor
    process = next(it for it in supervisor.processes if it.name == name)
    before = process.restarts
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    if name != "envoy":
        for _ in range(20):
            assert await bench.post(PLAIN) in [
                (200, b'{"replica": "chat-1"}'),
                (200, b'{"replica": "chat-2"}'),
            ]
        assert supervisor.why_not_ready() == []
    else:
        await eventually_in_loop(lambda: supervisor.why_not_ready() == ["Envoy is not live"])
        status, body = await bench.pod.probe("/readyz")
        assert (status, body["status"]) == (503, "not ok")
    await eventually_in_loop(lambda: process.restarts == before + 1 and process.is_running)
    await eventually_in_loop(lambda: not supervisor.why_not_ready())
    text = await bench.pod.metrics()
    assert f'process_restarts_total{{process="{name}"}} {before + 1}.0' in text

    async def picks() -> bool:
        return await bench.pod.healthy("pickers") == 1

    await until(picks)
    await bench.pod.knows(bench.first, bench.second)
    assert (await bench.post(PLAIN))[0] == 200


async def test_a_replica_that_drains_finishes_and_gets_nothing_more(bench: Bench) -> None:
    gate = bench.first.first_token = bench.second.first_token = asyncio.Event()
    streams = [asyncio.ensure_future(bench.post(STREAM)) for _ in range(4)]
    await eventually_in_loop(lambda: bench.first.active + bench.second.active == 4)
    assert bench.first.active > 0
    bench.first.is_draining = True
    await bench.pod.knows(bench.second)
    gate.set()
    before = len(bench.first.requests)
    for _ in range(20):
        assert (await bench.post(PLAIN))[0] == 200
    assert len(bench.first.requests) == before
    for status, events in await asyncio.gather(*streams):
        assert (status, events.endswith(DONE)) == (200, True)


async def test_a_replica_that_has_ended_costs_no_request(bench: Bench) -> None:
    await bench.first.stop()
    for _ in range(20):
        assert await bench.post(PLAIN) == (200, b'{"replica": "chat-2"}')
    await bench.pod.knows(bench.second)


@pytest.mark.parametrize("had_drained", [False, True])
async def test_a_stranger_at_the_address_of_a_replica_gets_no_requests(
    bench: Bench, had_drained: bool
) -> None:
    stranger = ServedReplica(bench.first.address, "chat-1", namespace="team-b")
    if had_drained:
        bench.first.is_draining = True
        await bench.pod.knows(bench.second)
    await bench.first.stop()
    await stranger.start()
    loop = asyncio.get_running_loop()
    taken_over = loop.time()
    try:
        late = 0
        while loop.time() < taken_over + 1.5:
            before = len(stranger.requests)
            began = loop.time()
            assert (await bench.post(PLAIN))[0] == 200
            if had_drained or began > taken_over + 1.0:
                late += len(stranger.requests) - before
        assert late == 0
        await bench.pod.knows(bench.second)
        assert stranger.questions > 0
    finally:
        await stranger.stop()


@pytest.mark.parametrize("fails", [False, True])
async def test_replicas_that_confirm_are_kept_while_dns_names_none(
    bench: Bench, fails: bool
) -> None:
    bench.pod.names.addresses, bench.pod.names.fails = [], fails
    asked = bench.first.questions
    periods = math.ceil(CONFIRMED_SECONDS / PERIOD_SECONDS)
    await eventually_in_loop(lambda: bench.first.questions > asked + periods)
    for _ in range(4):
        assert (await bench.post(PLAIN))[0] == 200
    await bench.pod.knows(bench.first, bench.second)


async def test_addresses_that_dns_names_too_long_get_nothing(bench: Bench) -> None:
    await bench.first.stop()
    unused, new = addresses(2)
    newcomer = ServedReplica(new, "chat-3")
    await newcomer.start()
    try:
        bench.pod.names.addresses += [unused, new]
        await bench.pod.knows(bench.second, newcomer)
        for _ in range(10):
            assert (await bench.post(PLAIN))[0] == 200
    finally:
        await newcomer.stop()
    await bench.pod.knows(bench.second)


@pytest.mark.parametrize("picker", ["runs", "hangs"])
async def test_a_held_stream_gets_comments_and_then_the_answer(bench: Bench, picker: str) -> None:
    await bench.lose_all()
    pid = bench.pod.supervisor.picker.pid
    assert pid is not None
    if picker == "hangs":
        os.kill(pid, signal.SIGSTOP)
    try:
        async with bench.pod.client.post(CHAT, json=STREAM) as answer:
            assert answer.status == 200
            assert await answer.content.readuntil(b"\n\n") == COMMENT
            bench.second.phase = "ready"
            events = (await answer.content.read()).replace(COMMENT, b"")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert events.startswith(b'data: {"token": 0}\n\n')
    assert events.endswith(DONE)
    # The only such header contains the total time in the picker and in the forwarder.
    (held,) = bench.second.requests[-1].headers.getall(HELD_HEADER)
    assert 1000 <= int(held) < 4000
    # The forwarder tries no other replica after a refusal.
    assert ATTEMPT_HEADER not in bench.second.requests[-1].headers


async def test_a_client_cannot_say_how_long_its_request_was_held(bench: Bench) -> None:
    headers = {HELD_HEADER: "100"}
    async with bench.pod.client.post(CHAT, json=PLAIN, headers=headers) as answer:
        assert answer.status == 200
    (request,) = bench.first.requests + bench.second.requests
    assert HELD_HEADER not in request.headers


async def test_the_deadline_gives_503_or_an_error_event(bench: Bench) -> None:
    await bench.lose_all()

    async def plain() -> tuple[int, str | None, str]:
        async with bench.pod.client.post(CHAT, json=PLAIN) as answer:
            body = await answer.json()
            return answer.status, answer.headers.get("retry-after"), body["error"]["message"]

    late = "no replica became available in time; send the request again later"
    refused, (status, events) = await asyncio.gather(plain(), bench.post(STREAM))
    assert refused == (503, "5", late)
    assert status == 200
    assert events.startswith(COMMENT)
    last = events.rstrip().rpartition(b"\n\n")[2]
    assert last.startswith(b'data: {"error": {"message": "no replica became available in time')


async def test_a_client_that_leaves_while_it_waits_is_freed(bench: Bench) -> None:
    await bench.lose_all()
    waiting = "llmservice_router_forwarder_waiting_requests"

    async def held() -> bool:
        return await bench.pod.forwarded(waiting) == 1

    async def freed() -> bool:
        return await bench.pod.forwarded(waiting) == 0

    posted = asyncio.ensure_future(bench.post(STREAM))
    await until(held)
    posted.cancel()
    with suppress(asyncio.CancelledError):
        await posted
    await until(freed, within=2)


async def test_a_router_of_older_replicas_takes_no_clients(bench: Bench) -> None:
    bench.first.is_older = bench.second.is_older = True
    try:
        await bench.pod.knows()
        (reason,) = bench.pod.supervisor.why_not_ready()
        assert "use the image of this release" in reason
    finally:
        bench.first.is_older = bench.second.is_older = False


async def test_the_endpoint_files_hold_the_confirmed_replicas(bench: Bench) -> None:
    folder = bench.pod.settings.run_directory
    for name in ("replicas.json", "replicas_or_forwarder.json"):
        text = (folder / name).read_text()
        assert bench.first.address in text
        assert bench.second.address in text
    assert "100000" in text
    status, body = await bench.pod.probe("/readyz")
    assert (status, body) == (200, {"status": "ok", "reasons": []})
    status, _ = await bench.pod.probe("/livez")
    assert status == 200
