"""Asks all replicas for their reports, so that no silent replica keeps others from being asked."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

from llmservice_operator.cluster import Key
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.metrics_server.turns import FairTurns
from llmservice_operator.workload import Replica

ROUND_SECONDS: Final = 4.0
"""Longest time in seconds in which a round asks the replicas. Rounds begin every 5 seconds."""


SILENT_SECONDS: Final = 1.5
"""Longest time in seconds for an answer of a replica that did not answer the last time. It is
shorter than the usual limit, because a round waits for such replicas, and longer than one
retransmission of a connection takes."""


class Engines(Protocol):
    """Queries the model server of one replica."""

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None: ...


class Scrapes:
    """Remembers between the rounds which replicas are silent, and which had no turn."""

    def __init__(self, engines: Engines, scraped: Callable[[int, int], None]) -> None:
        """`scraped` is called in each round with the numbers of replicas that answered and that
        did not.
        """
        self._engines = engines
        self._scraped = scraped
        self._turns = FairTurns()
        self._silent: set[tuple[Key, str]] = set()
        """Replicas that did not answer the last time, by service and name."""
        self._left_out: set[tuple[Key, str]] = set()
        """Replicas that got no turn in the last round."""

    async def ask(
        self, replicas: Mapping[Key, list[Replica]]
    ) -> defaultdict[Key, dict[str, EngineAnswer]]:
        """Ask every replica for ROUND_SECONDS. The replicas that get no turn come first in the next
        round.
        """
        asked = [
            (key, it, it.address)
            for key, of_service in replicas.items()
            for it in of_service
            if it.address
        ]
        asked.sort(key=lambda each: (each[0], each[1].name) not in self._left_out)
        begun = set[tuple[Key, str]]()

        async def ask(key: Key, replica: Replica, address: str) -> EngineAnswer | None:
            answers = (key, replica.name) not in self._silent
            async with self._turns.turn(key[0], answers=answers):
                begun.add((key, replica.name))
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if answers else SILENT_SECONDS):
                        return await self._engines.ask(address, is_ready=replica.serves)
            return None

        tasks = {
            asyncio.create_task(ask(key, it, address)): (key, it.name) for key, it, address in asked
        }
        found: defaultdict[Key, dict[str, EngineAnswer]] = defaultdict(dict)
        done, late = await asyncio.wait(tasks, timeout=ROUND_SECONDS) if tasks else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            key, name = tasks[task]
            if (answer := task.result()) is not None:
                found[key][name] = answer
        unanswered = {(key, name) for key, name in tasks.values() if name not in found[key]}
        self._left_out = unanswered - begun
        self._silent = (self._silent & self._left_out) | (unanswered & begun)
        answered = sum(len(of_service) for of_service in found.values())
        self._scraped(answered, len(asked) - answered)
        return found
