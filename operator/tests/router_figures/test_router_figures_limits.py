"""What the limits of API keys let pass through two router pods, and while their picker is killed.

Clients send with four keys, as many requests as they can. The replica notes what it gets, and
reports the tokens of each key.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import web

from llmservice_operator.router_settings import ClientLimits, LimitsOfClients
from router_support.pod import Pod, replicas_of, settings_of, snapshot
from router_support.replicas import FakeReplica, running
from shared_support.scrape import metric_of

CHAT = "/v1/chat/completions"
REQUESTS, TOKENS, CONCURRENT = 120, 20_000, 4
KEYS = {
    "requests": ClientLimits(requests=REQUESTS, concurrent=CONCURRENT),
    "tokens": ClientLimits(tokens=TOKENS, concurrent=CONCURRENT),
    "concurrent": ClientLimits(concurrent=CONCURRENT),
}
"""Limits of each key."""
MAX_TOKENS = 400
MINUTE = 60.0
SENDERS = 3 * CONCURRENT
"""Number of requests that each key tries to have in progress."""
PASSAGE_SECONDS = 0.1
"""Longest time in seconds between the count of a request and its arrival at the replica."""


@dataclass
class Usage:
    """What the replicas got from one key."""

    sent: list[tuple[float, int]] = field(default_factory=list)
    """Time and tokens of each request."""
    active: int = 0
    most_active: int = 0

    def most(self, *, tokens: bool = False) -> int:
        """Return the largest number of requests, or of tokens, in any minute."""
        return most_within_a_minute((at, used if tokens else 1) for at, used in sorted(self.sent))


def most_within_a_minute(amounts: Iterable[tuple[float, int]]) -> int:
    window, total, most = deque[tuple[float, int]](), 0, 0
    for at, amount in amounts:
        window.append((at, amount))
        total += amount
        while window[0][0] <= at - MINUTE + PASSAGE_SECONDS:
            total -= window.popleft()[1]
        most = max(most, total)
    return most


@dataclass
class Service:
    """Two router pods in front of one replica, and clients that send as much as they can."""

    pods: tuple[Pod, Pod]
    replica: FakeReplica
    client: aiohttp.ClientSession
    usage: dict[str, Usage] = field(default_factory=lambda: {key: Usage() for key in KEYS})
    counted: Counter[str] = field(default_factory=Counter)
    """Tokens of each key that the replica has counted."""
    statuses: Counter[int] = field(default_factory=Counter)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        key = request.headers["Authorization"].removeprefix("Bearer key-of-")
        usage, size = self.usage[key], len(await request.read())
        chance = random.Random(len(usage.sent))
        used = size // 4 + chance.randrange(MAX_TOKENS)
        usage.sent.append((time.monotonic(), used))
        usage.active += 1
        usage.most_active = max(usage.most_active, usage.active)
        try:
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            return await self.replica.stream(request)
        finally:
            usage.active -= 1
            self.counted[key] += used

    def report(self) -> None:
        for pod in self.pods:
            pod.tell_pickers([self.replica], reports=[snapshot()], key_tokens=self.counted)

    async def report_for_ever(self) -> None:
        while True:
            self.report()
            await asyncio.sleep(0.5)

    async def send_for_ever(self, key: str, number: int) -> None:
        chance = random.Random(number)
        headers = {"Authorization": f"Bearer key-of-{key}"}
        while True:
            body = {"max_tokens": MAX_TOKENS, "prompt": "a" * chance.randrange(2000)}
            pod = chance.choice(self.pods)
            async with self.client.post(f"{pod.url}{CHAT}", json=body, headers=headers) as answer:
                await answer.read()
                self.statuses[answer.status] += 1
            if answer.status != HTTPStatus.OK:
                await asyncio.sleep(chance.uniform(0.5, 1.5))

    def show(self, event: str) -> None:
        """Print the most that a key has had in a minute."""
        print(
            f"LIMITS {event}: {self.usage['requests'].most()} requests of {REQUESTS}, "
            f"{self.usage['tokens'].most(tokens=True)} tokens of {TOKENS}, "
            f"{self.most_active} of {CONCURRENT} at the same time, {self.passed} passed without a "
            f"picker, statuses {dict(self.statuses)}"
        )

    @property
    def most_active(self) -> int:
        return max(each.most_active for each in self.usage.values())

    @property
    def passed(self) -> int:
        """Number of requests that passed because no picker answered in time."""
        name = "envoy_http_ext_proc_failure_mode_allowed"
        return sum(int(metric_of(each.admin("/stats/prometheus"), name)) for each in self.pods)


@asynccontextmanager
async def service(folder: Path) -> AsyncIterator[Service]:
    keys = folder / "keys"
    keys.mkdir()
    for key in KEYS:
        (keys / key).write_text(f"key-of-{key}")
    settings = {"api_keys_directory": keys, "client_limits": LimitsOfClients(keys=KEYS)}
    for name in ("first", "second"):
        (folder / name).mkdir()
    first = Pod(settings_of(folder / "first", **settings), pickers=2)
    second = Pod(settings_of(folder / "second", **settings), beside=first)
    (replica,) = replicas_of(1)
    first.start()
    second.start()
    tasks = list[asyncio.Task[None]]()
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with running(replica), aiohttp.ClientSession(connector=connector) as client:
            made = Service((first, second), replica, client)
            replica.behaviour = made.answer
            for pod in made.pods:
                await pod.tell_envoy([replica])
            made.report()
            for pod in made.pods:
                await pod.ready([replica])
            tasks.append(asyncio.create_task(made.report_for_ever()))
            tasks += [
                asyncio.create_task(made.send_for_ever(key, number))
                for key in KEYS
                for number in range(SENDERS)
            ]
            yield made
            assert [each for each in tasks if each.done()] == []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        first.stop()
        second.stop()


async def test_two_router_pods_together_let_no_key_exceed_its_limits(tmp_path: Path) -> None:
    async with service(tmp_path) as made:
        await asyncio.sleep(1.5 * MINUTE)
        made.show("two router pods")
        assert REQUESTS / 2 < made.usage["requests"].most() <= REQUESTS + made.passed
        assert made.usage["tokens"].most(tokens=True) > TOKENS / 2
        assert made.usage["tokens"].most(tokens=True) <= TOKENS + 2 * MAX_TOKENS * made.passed
        assert made.most_active <= CONCURRENT + made.passed
        assert set(made.statuses) == {200, 429}


async def test_a_picker_that_is_killed_lets_at_most_one_more_minute_pass(tmp_path: Path) -> None:
    async with service(tmp_path) as made:
        await asyncio.sleep(0.3 * MINUTE)
        made.pods[0].pickers_running[0].kill()
        await asyncio.sleep(MINUTE)
        made.show("the picker is killed")
        assert made.usage["requests"].most() <= 2 * REQUESTS
        assert made.usage["tokens"].most(tokens=True) <= 2 * TOKENS
        assert made.most_active <= 2 * CONCURRENT + made.passed
        assert set(made.statuses) == {200, 429}
