"""Measures the time from a change of a service to the change of its child."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from llmservice_operator.kinds import LLMSERVICES, NETWORK_POLICIES
from operator_bench.client import Client, Key
from operator_bench.services import clients_of, round_of
from shared_support.waiting import eventually_in_loop

PERIOD_SECONDS = 0.1
"""Time in seconds between two changes."""
LOST_SECONDS = 15.0
"""Maximum wait for a change, in seconds. A change that takes longer is recorded with this time."""


class Latency:
    """Changes services one after another, and watches their NetworkPolicies."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._round = 0
        self._waiting: dict[Key, tuple[str, float]] = {}
        """Mapping from each service whose child has not changed yet to the number of the round,
        which the child will contain, and the time at which the service changed."""
        self._took: list[float] = []

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            yield
            watch.cancel()

    async def sample(self, services: Sequence[Key]) -> list[float]:
        """Change every service once. Return the times in milliseconds until the children change."""
        self._round += 1
        self._waiting.clear()
        self._took.clear()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, key in enumerate(services):
                await asyncio.sleep(begin + number * PERIOD_SECONDS - loop.time())
                group.create_task(self._change(key))
        with suppress(AssertionError):
            await eventually_in_loop(lambda: not self._waiting, LOST_SECONDS)
        lost = len(self._waiting)
        return [1000 * each for each in self._took] + [1000 * LOST_SECONDS] * lost

    async def change(self, key: Key) -> None:
        """Change a service without measuring the time."""
        self._round += 1
        await self._client.merge(LLMSERVICES, key, self._spec())

    async def _change(self, key: Key) -> None:
        self._waiting[key] = str(self._round), time.monotonic()
        await self._client.merge(LLMSERVICES, key, self._spec())

    def _spec(self) -> dict[str, object]:
        return {"spec": {"networkPolicy": clients_of(self._round)}}

    async def _watch(self) -> None:
        async for _, policy in self._client.events(NETWORK_POLICIES, whole=True):
            key = policy["metadata"]["namespace"], policy["metadata"]["name"]
            if key in self._waiting and self._waiting[key][0] == round_of(policy):
                _, since = self._waiting.pop(key)
                self._took.append(time.monotonic() - since)
