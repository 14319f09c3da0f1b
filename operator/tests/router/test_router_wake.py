"""Requests to a service without replicas: from a whole router pod to the operator and back."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator import names
from llmservice_operator.api.router_messages import ReplicaList
from llmservice_operator.cluster import Key
from llmservice_operator.idle_client import WakeClient
from llmservice_operator.metrics_server.router_updates import RouterClient
from llmservice_operator.metrics_server.waking import Waking, add_wakes
from router_support.whole_pod import (
    CHAT,
    DONE,
    NAMESPACE,
    PLAIN,
    SERVICE,
    STREAM,
    RouterPod,
    ServedReplica,
    addresses,
    client_of,
    router_pod,
    until,
)
from shared_support.waiting import eventually_in_loop

KEY = NAMESPACE, SERVICE
REQUESTS = 20
OWN_ADDRESS = "127.0.0.1"
"""Address of the router pod, and of the metrics server."""


def service() -> dict[str, Any]:
    autoscaling = {"minReplicas": 0, "maxReplicas": 4}
    return {
        "metadata": {"namespace": NAMESPACE, "name": SERVICE},
        "spec": {"autoscaling": autoscaling},
    }


def router() -> dict[str, Any]:
    labels = {names.ROUTER_LABEL: SERVICE}
    return {
        "metadata": {"namespace": NAMESPACE, "name": "r", "uid": "u", "labels": labels},
        "status": {"phase": "Running", "podIP": OWN_ADDRESS},
    }


@asynccontextmanager
async def awake(client: RouterClient) -> AsyncIterator[dict[Key, float]]:
    """Run the metrics server's and the operator's part. Yield the times at which it was woken."""
    woken: dict[Key, float] = {}
    loop = asyncio.get_running_loop()

    def note(key: Key) -> None:
        woken.setdefault(key, loop.time())

    waking = Waking(
        lambda: [service()], lambda: [router()], client.next_held, lambda _, held: float(held)
    )
    app = web.Application()
    add_wakes(app, waking)
    async with TestServer(app) as server:
        operator = WakeClient(str(server.make_url("/")), note)
        running = [asyncio.create_task(each.run()) for each in (waking, operator)]
        try:
            yield woken
        finally:
            for each in running:
                each.cancel()
            await asyncio.wait(running)


async def tell(client: RouterClient, *replicas: ServedReplica, refusal: str | None = None) -> None:
    """Send the pod the list of replicas, as a metrics server does."""
    ready = {"isReady": True, "isDraining": False}
    listed = [
        {"name": it.pod, "uid": f"uid-of-{it.pod}", "address": it.address, **ready}
        for it in replicas
    ]
    whole = {"namespace": NAMESPACE, "service": SERVICE, "replicas": listed, "refusal": refusal}
    message = ReplicaList.model_validate(whole)

    async def is_accepted() -> bool:
        return await client.send(OWN_ADDRESS, message) is not None

    await until(is_accepted)


async def wait_for_streams(pod: RouterPod, number: int) -> None:
    """Wait until this number of streams has got a comment, and waits in the forwarder."""

    async def do_wait() -> bool:
        return await pod.forwarded("llmservice_router_forwarder_waiting_requests") == number

    await until(do_wait)


async def ask(pod: RouterPod, number: int) -> tuple[int, str, bytes]:
    """Send a request, every second one for a stream."""
    async with pod.client.post(CHAT, json=STREAM if number % 2 else PLAIN) as answer:
        return answer.status, answer.headers.get("retry-after", ""), await answer.read()


async def test_requests_without_a_replica_wake_the_service_and_are_all_answered(
    tmp_path: Path,
) -> None:
    (address,) = addresses(1)
    replica, loop = ServedReplica(address, "chat-1"), asyncio.get_running_loop()
    async with router_pod(tmp_path) as pod, client_of(pod) as client, awake(client) as woken:
        await tell(client)
        begun = loop.time()
        asked = [asyncio.create_task(ask(pod, number)) for number in range(REQUESTS)]
        await eventually_in_loop(lambda: KEY in woken)
        print(f"the operator knows of the first request after {woken[KEY] - begun:.2f} s")
        await wait_for_streams(pod, REQUESTS // 2)
        assert not any(each.done() for each in asked)
        await replica.start()
        try:
            await tell(client, replica)
            answers = await asyncio.gather(*asked)
        finally:
            await replica.stop()
    assert {status for status, *_ in answers} == {200}
    assert all(body.endswith(DONE) for *_, body in answers[1::2])
    assert [json.loads(body) for *_, body in answers[::2]] == [{"replica": "chat-1"}] * 10
    assert len(replica.requests) == REQUESTS


async def test_requests_that_wait_are_refused_when_the_service_is_suspended(
    tmp_path: Path,
) -> None:
    why = "the service is suspended; send the request again when it is resumed"
    async with router_pod(tmp_path) as pod, client_of(pod) as client:
        await tell(client)
        asked = [asyncio.create_task(ask(pod, number)) for number in range(4)]
        await wait_for_streams(pod, 2)
        assert not any(each.done() for each in asked)
        await tell(client, refusal=why)
        plain, stream, *_ = await asyncio.gather(*asked)
        later = await ask(pod, 0)
    for status, retry_after, body in (plain, later):
        assert (status, retry_after) == (503, "5")
        assert json.loads(body)["error"]["message"] == why
    # The status 200 of a stream was sent with its first comment.
    assert stream[0] == 200
    assert why in stream[2].decode()
