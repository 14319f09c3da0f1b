"""The end of a router pod, whose first process gets SIGTERM as from the kubelet."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from router_support.whole_pod import (
    CHAT,
    DONE,
    STREAM,
    ServedReplica,
    addresses,
    settings_of_pod,
    until,
)
from shared_support.waiting import eventually_in_loop

SECRETS = ("secret-of-the-query", "secret-of-the-key", "secret-of-the-prompt")


def content(file: Path) -> str:
    return file.read_text()


async def test_sigterm_ends_the_pod_after_all_streams(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (address,) = addresses(1)
    replica = ServedReplica(address, "chat-1", tokens=20, token_seconds=0.1)
    gate = replica.first_token = asyncio.Event()
    (tmp_path / "run").mkdir()
    settings = settings_of_pod(tmp_path / "run", drain_seconds=1).model_copy(
        update={"replicas_host": address}
    )
    api = f"http://127.0.0.1:{settings.client_port}"
    ready = f"http://127.0.0.1:{settings.management_port}/readyz"

    async def stream() -> tuple[int, str | None, bytes]:
        url = f"{CHAT}?q={SECRETS[0]}"
        headers = {"authorization": f"Bearer {SECRETS[1]}"}
        body = {**STREAM, "prompt": SECRETS[2]}
        async with (
            aiohttp.ClientSession(api) as client,
            client.post(url, json=body, headers=headers) as answer,
        ):
            return answer.status, answer.headers.get("connection"), await answer.read()

    async def probe(status: int) -> bool:
        try:
            async with aiohttp.ClientSession() as client, client.get(ready) as answer:
                return answer.status == status
        except aiohttp.ClientError:
            return False

    await replica.start()
    with log.open("wb") as output:
        router = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llmservice_operator", "router"),
            env={**os.environ, **settings.environment()},
            stdout=output,
            stderr=output,
        )
    try:
        await until(lambda: probe(200))
        streams = [asyncio.ensure_future(stream()) for _ in range(5)]
        await eventually_in_loop(lambda: replica.active == 5)
        router.send_signal(signal.SIGTERM)
        await until(lambda: probe(503), within=5)
        # The cluster has not noticed the end yet, and still sends new clients.
        late = asyncio.ensure_future(stream())
        await eventually_in_loop(lambda: replica.active == 6)
        gate.set()
        for status, connection, events in await asyncio.gather(*streams, late):
            assert (status, connection, events.endswith(DONE)) == (200, "close", True)
        async with asyncio.timeout(30):
            assert await router.wait() == 0
    finally:
        if router.returncode is None:
            router.kill()
            await router.wait()
        await replica.stop()
        print(content(log))
    with pytest.raises(aiohttp.ClientConnectorError):
        await stream()
    text = content(log)
    assert "all requests have ended" in text
    assert [each for each in (*SECRETS, CHAT) if each in text] == []
