"""Generates load: sends requests of given lengths, plain or streamed, and measures them at the
client.

vLLM's own generator (`vllm bench serve`) only streams, and the gates need plain requests, too.
"""

import asyncio
import itertools
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from serving.servers import SERVED_NAME, Server


@dataclass
class Load:
    """Results of one run, with times in seconds."""

    tokens: int = 0
    """Tokens generated in all answers."""
    seconds: float = 0.0
    api_cpu_seconds: float = 0.0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds

    @property
    def api_cpu_per_1000_tokens(self) -> float:
        return 1000 * self.api_cpu_seconds / self.tokens


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value for which at least this share of the values is as low or lower."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def run(
    server: Server,
    lengths: Sequence[int],
    *,
    concurrency: int,
    stream: bool,
    prompts: Sequence[str] = ("The sea in winter is",),
    temperature: float = 0,
) -> Load:
    """Request one answer of each length, `concurrency` of them at the same time."""
    waiting = list(_bodies(lengths, prompts, stream=stream, temperature=temperature))[::-1]

    async def send(session: aiohttp.ClientSession, load: Load) -> None:
        async def client() -> None:
            while waiting:
                await _ask(session, server, load, "/v1/completions", waiting.pop())

        await asyncio.gather(*(client() for _ in range(concurrency)))

    return asyncio.run(_measured(server, send))


def run_chats(
    server: Server, lengths: Sequence[int], *, rate: float | None = None, concurrency: int = 0
) -> Load:
    """Request one streamed chat of each length.

    With a rate, `rate` chats begin per second, regardless of the number in progress. Without a
    rate, `concurrency` chats are in progress at the same time.
    """
    places = asyncio.Semaphore(len(lengths) if rate else concurrency)

    async def send(session: aiohttp.ClientSession, load: Load) -> None:
        started = time.perf_counter()

        async def client(number: int, body: Mapping[str, object]) -> None:
            if rate:
                await asyncio.sleep(started + number / rate - time.perf_counter())
            async with places:
                await _ask(session, server, load, "/v1/chat/completions", body)

        bodies = enumerate(_chat_bodies(lengths))
        await asyncio.gather(*(client(number, body) for number, body in bodies))

    return asyncio.run(_measured(server, send))


def _bodies(
    lengths: Sequence[int], prompts: Sequence[str], *, stream: bool, temperature: float
) -> Iterator[dict[str, object]]:
    for number, (length, prompt) in enumerate(zip(lengths, itertools.cycle(prompts), strict=False)):
        # Each prompt is different, and every server gets the same sequence of prompts.
        yield {
            **_body(length, stream=stream, temperature=temperature),
            "prompt": f"{number}. {prompt}",
        }


def _chat_bodies(lengths: Sequence[int]) -> Iterator[dict[str, object]]:
    for number, length in enumerate(lengths):
        asked = {"role": "user", "content": f"{number}. What is the sea like in winter?"}
        yield {**_body(length, stream=True, temperature=0), "messages": [asked]}


def _body(length: int, *, stream: bool, temperature: float) -> dict[str, object]:
    body = {
        "model": SERVED_NAME,
        "max_tokens": length,
        "temperature": temperature,
        "seed": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body


async def _measured(
    server: Server, send: Callable[[aiohttp.ClientSession, Load], Awaitable[None]]
) -> Load:
    load = Load()
    limit = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limit, connector=connector) as session:
        cpu_before, started = server.api_cpu_seconds(), time.perf_counter()
        await send(session, load)
        load.seconds = time.perf_counter() - started
        load.api_cpu_seconds = server.api_cpu_seconds() - cpu_before
    return load


async def _ask(
    session: aiohttp.ClientSession,
    server: Server,
    load: Load,
    route: str,
    body: Mapping[str, object],
) -> None:
    started = time.perf_counter()
    async with session.post(f"{server.url}{route}", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{server.name} answered {response.status}: {await response.text()}")
        if body["stream"]:
            tokens = await _read_stream(response, load, started)
        else:
            tokens = (await response.json())["usage"]["completion_tokens"]
    if tokens != body["max_tokens"]:
        raise RuntimeError(f"{server.name} gave {tokens} of {body['max_tokens']} tokens")
    load.tokens += tokens
    load.latency.append(time.perf_counter() - started)


async def _read_stream(response: aiohttp.ClientResponse, load: Load, started: float) -> int:
    tokens, last, before = 0, b"", None
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        last = line
        if b'"choices":[{' in line:
            now = time.perf_counter()
            if before is None:
                load.ttft.append(now - started)
            else:
                load.itl.append(now - before)
            before = now
        if b'"usage":{' in line:
            tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
    if last.strip() != b"data: [DONE]":
        raise RuntimeError(f"the stream was cut after {last!r}")
    return tokens
