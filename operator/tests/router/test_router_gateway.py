"""Requests through a Gateway, whose Envoy asks the pickers in the Endpoint Picker Protocol.

They contain the conformance cases of the Gateway API Inference Extension that an endpoint picker
can fail: GatewayFollowingEPPRouting, GatewayDestinationEndpointServed (in the unit tests of the
exchange) and EppUnAvailableFailOpen. The other cases are about the controller of a Gateway.
"""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from llmservice_operator.names import HELD_HEADER
from router_support.gateway import DESTINATION, SUBSET_HEADER, Gateway
from router_support.pod import replicas_of, settings_of
from router_support.replicas import FakeReplica, running
from shared_support.waiting import eventually_in_loop

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
KEY = "key-of-a-client"
ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "1"))
"""Number of times that the first picker is killed."""
MAX_BODY = 4 * 1024**2
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    folder, keys = tmp_path_factory.mktemp("gateway"), tmp_path_factory.mktemp("keys")
    (keys / "key").write_text(KEY)
    settings = settings_of(
        folder, api_keys_directory=keys, max_body_bytes=MAX_BODY, hold_timeout_seconds=60
    )
    replicas = replicas_of(3)
    async with running(*replicas):
        found = Gateway(folder, settings, replicas)
        found.start()
        try:
            await found.ready()
            yield found
        finally:
            found.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    for each in gateway.replicas:
        each.seen.clear()
        each.bodies.clear()
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(gateway.url, headers=AUTHORIZED, timeout=timeout) as session:
        yield session


def served(gateway: Gateway) -> FakeReplica:
    """Return the only replica that has got a request."""
    (found,) = (each for each in gateway.replicas if each.seen)
    return found


def place(replica: FakeReplica) -> str:
    host, port = replica.address
    return f"{host}:{port}"


async def test_the_first_of_an_ordered_list_of_replicas_gets_the_request(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    async with client.post(CHAT, data=b'{"stream": true}') as answer:
        assert await answer.read() == b"data: {}\n\n" * 3
    replica = served(gateway)
    first, second = replica.seen[0].headers[DESTINATION].split(",")
    assert first == place(replica)
    assert second in {place(each) for each in gateway.replicas} - {first}
    assert replica.bodies == [b'{"stream": true}']


@pytest.mark.parametrize("size", [0, 1000, 100_000, 3 * 1024**2], ids=lambda size: f"{size} bytes")
@pytest.mark.parametrize("is_announced", [True, False], ids=["content-length", "chunked"])
async def test_a_body_reaches_the_replica_unchanged(
    gateway: Gateway, client: aiohttp.ClientSession, size: int, is_announced: bool
) -> None:
    content = os.urandom(size)

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, size, 50_000):
            yield content[at : at + 50_000]

    async with client.post(CHAT, data=io.BytesIO(content) if is_announced else parts()) as answer:
        assert answer.status == 200
        await answer.read()
    assert served(gateway).bodies == [content]


async def test_a_request_without_a_body_is_answered(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    async with client.get("/v1/models") as answer:
        assert answer.status == 200
    assert DESTINATION in served(gateway).seen[0].headers


async def test_only_replicas_that_the_gateway_allows_are_chosen(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    for replica in gateway.replicas:
        for _ in range(3):
            allowed = {SUBSET_HEADER: place(replica)}
            async with client.post(CHAT, data=b"{}", headers=allowed) as answer:
                assert answer.headers["x-replica"] == replica.name
        assert {it.headers[DESTINATION] for it in replica.seen} == {place(replica)}


async def test_without_an_allowed_replica_the_request_is_refused(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    async with client.post(CHAT, data=b"{}", headers={SUBSET_HEADER: "none"}) as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == 503
        assert "retry-after" in answer.headers
    assert not any(each.seen for each in gateway.replicas)


async def test_a_request_without_a_valid_key_reaches_no_replica(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    wrong = {"authorization": "Bearer wrong"}
    async with client.post(CHAT, data=b"{}", headers=wrong) as answer:
        assert answer.status == 401
        error = (await answer.json())["error"]
        assert error["type"] == "UnauthorizedError"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not any(each.seen for each in gateway.replicas)


async def test_a_client_chooses_no_replica_and_no_waiting_time(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    forged = {DESTINATION: "192.0.2.1:1", HELD_HEADER: "999999"}
    async with client.post(CHAT, data=b"{}", headers=forged) as answer:
        assert answer.status == 200
    headers = served(gateway).seen[0].headers
    assert headers[DESTINATION].startswith(place(served(gateway)))
    assert HELD_HEADER not in headers


@pytest.mark.parametrize("is_announced", [True, False], ids=["content-length", "chunked"])
async def test_a_body_that_is_too_large_is_refused(
    gateway: Gateway, client: aiohttp.ClientSession, is_announced: bool
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 2):
            yield bytes(65536)

    content = io.BytesIO(bytes(MAX_BODY + 1)) if is_announced else parts()
    try:
        async with client.post(CHAT, data=content) as answer:
            assert answer.status in ({413} if is_announced else {413, 500, 502, 503})
    except aiohttp.ClientError:
        pass  # the connection ends while the client still sends
    assert not any(len(body) > MAX_BODY for each in gateway.replicas for body in each.bodies)


async def test_the_parts_of_an_answer_arrive_as_they_are_sent(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    for each in gateway.replicas:
        each.chunk_seconds = 0.5
    try:
        async with client.post(CHAT, data=b'{"stream": true}') as answer:
            begun = asyncio.get_running_loop().time()
            await answer.content.readuntil(b"\n\n")
            first = asyncio.get_running_loop().time() - begun
            await answer.read()
            assert asyncio.get_running_loop().time() - begun > first + 0.5
    finally:
        for each in gateway.replicas:
            each.chunk_seconds = 0.01


async def test_a_request_waits_for_a_replica_beyond_the_gateways_limit_of_a_message(
    tmp_path: Path,
) -> None:
    async def ask(client: aiohttp.ClientSession, headers: dict[str, str]) -> int:
        async with client.post(CHAT, data=b'{"stream": true}', headers=headers) as answer:
            await answer.read()
            return answer.status

    replicas = replicas_of(1)
    settings = settings_of(tmp_path, hold_timeout_seconds=60)
    async with running(*replicas):
        gateway = Gateway(tmp_path, settings, replicas, seconds=3)
        gateway.start()
        try:
            await gateway.ready()
            gateway.tell(0, [])
            async with aiohttp.ClientSession(gateway.url) as client:
                async with asyncio.timeout(60):
                    # The picker refuses the address as soon as it knows no replica.
                    while await ask(client, {SUBSET_HEADER: place(replicas[0])}) != 503:
                        pass
                replicas[0].seen.clear()
                asking = asyncio.create_task(ask(client, {}))
                await asyncio.wait({asking}, timeout=gateway.seconds + 1)
                assert not asking.done()
                gateway.tell(0)
                assert await asking == 200
            assert int(served(gateway).seen[0].headers[HELD_HEADER]) > 500
        finally:
            gateway.stop()


async def statuses(gateway: Gateway, number: int) -> list[int]:
    """Send requests one after another; return their statuses."""
    found = []
    async with aiohttp.ClientSession(gateway.url) as client:
        for _ in range(number):
            async with client.post(CHAT, data=b"{}") as answer:
                await answer.read()
                found.append(answer.status)
    return found


@pytest.mark.parametrize("_round", range(ROUNDS))
async def test_the_first_picker_chooses_for_the_gateway_of_another_one_until_it_ends(
    tmp_path: Path, _round: int
) -> None:
    replicas = replicas_of(2)
    async with running(*replicas):
        gateway = Gateway(tmp_path, settings_of(tmp_path), replicas, pickers=2, asked=[1])
        gateway.start()
        try:
            await gateway.ready()
            async with asyncio.timeout(60):
                while await gateway.picks(0) == 0:  # the second picker does not follow it yet
                    assert await statuses(gateway, 1) == [200]
            before = await gateway.picks(0), await gateway.picks(1)
            assert await statuses(gateway, 20) == [200] * 20
            assert (await gateway.picks(0), await gateway.picks(1)) == (before[0] + 20, before[1])

            begun = sum(len(each.seen) for each in replicas)
            asking = asyncio.create_task(statuses(gateway, 40))
            await eventually_in_loop(lambda: sum(len(it.seen) for it in replicas) > begun + 5)
            gateway.running[0].kill()
            assert await asking == [200] * 40
            assert await gateway.picks(1) > before[1]
            assert all(DESTINATION in it.headers for each in replicas for it in each.seen)
        finally:
            gateway.stop()


async def test_a_gateway_that_fails_open_needs_no_picker(tmp_path: Path) -> None:
    replicas = replicas_of(2)
    async with running(*replicas):
        gateway = Gateway(tmp_path, settings_of(tmp_path), replicas, seconds=1)
        gateway.start()
        try:
            await gateway.ready()
            gateway.running[0].kill()
            # Until it notices, it gives the picker the body, and then cannot answer without it.
            async with asyncio.timeout(60):
                while await statuses(gateway, 1) != [200]:
                    pass
            assert await statuses(gateway, 10) == [200] * 10
            assert DESTINATION not in max(replicas, key=lambda it: len(it.seen)).seen[-1].headers
        finally:
            gateway.stop()
