"""Replicas and pickers that fail while Envoy serves requests."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import pytest
import pytest_asyncio

from llmservice_operator.names import ATTEMPT_HEADER
from llmservice_operator.router.envoy_names import SEEN_BODY_BYTES
from router_support.pod import Pod, replicas_of, settings_of
from router_support.replicas import (
    FakeReplica,
    answer_not_me,
    die,
    end_in_the_middle,
    running,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"


@dataclass
class Bench:
    pod: Pod
    replicas: list[FakeReplica]
    client: aiohttp.ClientSession

    async def post(self, text: str = "") -> tuple[int, str, str]:
        """Send a request. Return the status, the replica and the body of the response."""
        body = io.BytesIO(json.dumps({"prompt": text, "stream": True}).encode())
        headers = {"Content-Type": "application/json"}
        async with self.client.post(CHAT, data=body, headers=headers) as response:
            return (
                response.status,
                response.headers.get("x-replica", ""),
                await response.text(),
            )

    @property
    def seen(self) -> int:
        return sum(len(each.seen) for each in self.replicas)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    # Two pickers: the second one takes over when the first one fails.
    pod = Pod(settings_of(tmp_path_factory.mktemp("pod")), pickers=2)
    replicas = replicas_of(4)
    pod.start()
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            running(*replicas),
            aiohttp.ClientSession(pod.url, connector=connector) as client,
        ):
            await pod.tell(replicas)
            await pod.ready(replicas)
            yield Bench(pod, replicas, client)
    finally:
        pod.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def fresh(bench: Bench) -> AsyncIterator[None]:
    # After a replica fails, a picker sends it no request until `tell` names the replicas again.
    await bench.pod.tell(bench.replicas)
    yield
    for each in bench.replicas:
        each.behaviour = None
        each.seen.clear()


async def test_a_replica_that_ends_before_its_first_byte_is_replaced_by_another(
    bench: Bench,
) -> None:
    dying = bench.replicas[0]
    dying.behaviour = die
    answers = await asyncio.gather(*(bench.post(str(number)) for number in range(20)))
    assert {status for status, _, _ in answers} == {200}
    assert dying.seen
    assert dying.name not in {name for _, name, _ in answers}


async def test_a_refusal_marked_as_not_me_goes_to_one_other_replica(bench: Bench) -> None:
    refusing = bench.replicas[0]
    refusing.behaviour = answer_not_me
    assert (await bench.post())[:2] == (200, bench.replicas[1].name)
    attempts = [each.seen[0].headers.getall(ATTEMPT_HEADER) for each in bench.replicas[:2]]
    assert (bench.seen, attempts) == (2, [["1"], ["2"]])

    for each in bench.replicas:
        each.behaviour = answer_not_me
        each.seen.clear()
    status, _, _ = await bench.post("again")
    assert (status, bench.seen) == (503, 2)


async def test_the_replica_with_the_only_attempt_is_told_of_no_other(bench: Bench) -> None:
    # Envoy does not keep a body of this size for a second attempt.
    assert (await bench.post("x" * SEEN_BODY_BYTES))[0] == 200
    await bench.pod.tell(bench.replicas[:1])
    assert (await bench.post("the only replica"))[0] == 200
    seen = [request for each in bench.replicas for request in each.seen]
    assert [request.headers.getall(ATTEMPT_HEADER, []) for request in seen] == [[], []]


async def test_a_request_that_ends_two_replicas_is_refused_for_a_while(bench: Bench) -> None:
    for each in bench.replicas:
        each.behaviour = die
    status, _, text = await bench.post("deadly")
    assert (status, bench.seen) == (502, 2)
    assert "no replica could answer" in text
    for _ in range(3):
        status, _, text = await bench.post("deadly")
        assert status == 502
        assert "refused for 10 minutes" in text
    assert bench.seen == 2

    for each in bench.replicas:
        each.behaviour = None
    assert (await bench.post("harmless"))[0] == 200


async def test_a_stream_that_is_cut_after_its_first_byte_is_not_repeated(bench: Bench) -> None:
    for each in bench.replicas:
        each.behaviour = end_in_the_middle
    with pytest.raises(aiohttp.ClientPayloadError):
        await bench.post("cut")
    assert bench.seen == 1


async def test_no_request_fails_while_pickers_are_killed(bench: Bench) -> None:
    answers: list[int] = []

    async def client() -> None:
        while len(answers) < 400:
            answers.append((await bench.post(str(len(answers))))[0])

    clients = [asyncio.ensure_future(client()) for _ in range(8)]
    for picker, served in zip(bench.pod.pickers_running, (100, 200), strict=True):
        while len(answers) < served:
            await asyncio.wait(clients, timeout=0.05)
        picker.kill()
    await asyncio.gather(*clients)
    assert set(answers) == {200}
