"""Clients that repeat conversations, two Envoys that ask the same pickers, and prefix caches."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import web

from llmservice_operator.names import ATTEMPT_HEADER
from llmservice_operator.router_settings import StepPrior
from llmservice_operator.routing.prefixes import BLOCK_BYTES, PrefixIndex
from llmservice_operator.routing.prompts import prompt_of
from llmservice_operator.scaling.signals import Counters, Snapshot
from router_support.pod import Pod, replicas_of, settings_of, snapshot
from router_support.replicas import SECONDS, FakeReplica, running
from shared_support.waiting import eventually_in_loop

CHAT = "/v1/chat/completions"
REPLICAS = 4
CONVERSATIONS = 48
BLOCKS = 10
"""Blocks of the part of a prompt that all requests of a conversation share."""
CACHE_BLOCKS = 2 * CONVERSATIONS * BLOCKS // REPLICAS
"""Blocks in a replica's cache. All caches together hold every conversation, but each only twice."""
TEXTS = [random.randbytes(BLOCKS * BLOCK_BYTES // 2).hex() for _ in range(CONVERSATIONS)]
BYTES_PER_TOKEN = 4
CACHE_TOKENS = CACHE_BLOCKS * BLOCK_BYTES / BYTES_PER_TOKEN
REPORT_SECONDS = 0.5
PRIOR = StepPrior(fixed=0.005, prefill=2e-5, sequence=1e-5, kv=1e-9)


@dataclass(frozen=True)
class Served:
    """A request that reached a replica."""

    number: int
    at: float
    saved: float
    """Share of the prompt's blocks that the cache contained."""
    is_picked: bool
    """Whether a picker has chosen the replica."""


@dataclass
class CachingReplica:
    """A replica with a cache of prompts."""

    replica: FakeReplica
    served: list[Served] = field(default_factory=list)
    cache: PrefixIndex = field(default_factory=lambda: PrefixIndex(CACHE_BLOCKS))
    counters: Counters = field(default_factory=Counters)
    active: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        prompt = prompt_of(body, body["model"])
        saved = self.cache.matched(prompt.chain)
        self.cache.add(prompt.chain)
        self.counters = self.counters.plus(
            Counters(
                arrivals=1,
                prompt_tokens_arrived=prompt.size / BYTES_PER_TOKEN,
                prompt_tokens_cached=saved * BLOCK_BYTES / BYTES_PER_TOKEN,
            )
        )
        # With several replicas, a picker names a second one, and Envoy then counts the attempts.
        is_picked = ATTEMPT_HEADER in request.headers
        share = saved / len(prompt.chain)
        self.served.append(Served(body["seed"], time.monotonic(), share, is_picked))
        self.active += 1
        try:
            await asyncio.sleep(SECONDS)
            return await self.replica.stream(request)
        finally:
            self.active -= 1

    def report(self) -> Snapshot:
        return snapshot(counters=self.counters, running=self.active)


@dataclass
class Conversations:
    """Two Envoys with the same two pickers, and clients that repeat conversations."""

    pods: tuple[Pod, Pod]
    """The first pod runs both pickers."""
    replicas: list[CachingReplica]
    client: aiohttp.ClientSession
    served: list[Served] = field(default_factory=list)
    """Requests in the order in which they reached a replica."""
    sent: dict[int, float] = field(default_factory=dict)
    """Time at which each request was sent."""
    failed: list[int] = field(default_factory=list)
    """Requests without a complete answer of status 200."""
    _is_over: bool = False
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def report(self) -> None:
        """Tell the pickers the load of the replicas."""
        self.pods[0].tell_pickers(
            [each.replica for each in self.replicas],
            reports=[each.report() for each in self.replicas],
            cache_tokens=CACHE_TOKENS,
        )

    async def serve(self, number: int) -> list[Served]:
        """Wait until this many further requests have reached a replica, and return them."""
        before = len(self.served)
        await eventually_in_loop(lambda: len(self.served) >= before + number, within=300)
        return self.served[before : before + number]

    async def serve_for(self, seconds: float) -> list[Served]:
        """Return the requests that reach a replica within this time."""
        before = len(self.served)
        await asyncio.sleep(seconds)
        return self.served[before:]

    def kill_picker(self) -> None:
        """Kill the picker that chooses."""
        self.pods[0].pickers_running[0].kill()

    async def picker_returns(self) -> None:
        """Start the killed picker again, and wait until both Envoys find it healthy."""
        await self.healthy_pickers(1)
        self.pods[0].replace_picker(0)
        await self.healthy_pickers(2)

    def seconds_to_replica(self, each: Served) -> float:
        """Return the time that a request took from its client to its replica."""
        return each.at - self.sent[each.number]

    async def healthy_pickers(self, number: int) -> None:
        name = "cluster.pickers.membership_healthy"
        await eventually_in_loop(lambda: all(each.stat(name) == number for each in self.pods))

    async def _report_for_ever(self) -> None:
        while True:
            self.report()
            await asyncio.sleep(REPORT_SECONDS)

    async def _send_until_the_end(self, pod: Pod) -> None:
        while not self._is_over:
            number = len(self.sent)
            self.sent[number] = time.monotonic()
            conversation = self._random.randrange(CONVERSATIONS)
            # The prompt ends with a block that no other request has.
            prompt = f"{TEXTS[conversation]}{number:0{BLOCK_BYTES}}"
            body = {"model": "m", "seed": number, "prompt": prompt, "stream": True}
            try:
                async with self.client.post(f"{pod.url}{CHAT}", json=body) as answer:
                    await answer.read()
                    if answer.status != HTTPStatus.OK:
                        self.failed.append(number)
            except aiohttp.ClientError:
                self.failed.append(number)


def saved_percent(served: Iterable[Served]) -> float:
    """Return the percentage of the prompts' blocks that the caches contained."""
    return 100 * statistics.fmean(each.saved for each in served)


@asynccontextmanager
async def conversations(folder: Path, clients: int = 4) -> AsyncIterator[Conversations]:
    """Start everything. The clients send requests, each one after the other, until the end."""
    one, other = folder / "first", folder / "second"
    one.mkdir()
    other.mkdir()
    first = Pod(settings_of(one, step_prior=PRIOR), pickers=2)
    second = Pod(settings_of(other), beside=first)
    replicas = [CachingReplica(each) for each in replicas_of(REPLICAS)]
    fakes = [each.replica for each in replicas]
    try:
        first.start()
        second.start()
        connector = aiohttp.TCPConnector(limit=0)
        async with running(*fakes), aiohttp.ClientSession(connector=connector) as client:
            made = Conversations((first, second), replicas, client)
            for each in replicas:
                each.served, each.replica.behaviour = made.served, each.answer
            for pod in made.pods:
                await pod.tell_envoy(fakes)
            made.report()
            for pod in made.pods:
                await pod.ready(fakes)
            reporting = asyncio.create_task(made._report_for_ever())
            sending = [
                asyncio.create_task(made._send_until_the_end(made.pods[number % 2]))
                for number in range(clients)
            ]
            try:
                yield made
            finally:
                made._is_over = True
                await asyncio.wait(sending, timeout=60)
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)
    finally:
        second.stop()
        first.stop()
