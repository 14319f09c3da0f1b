"""A burst of requests that begin together. Each one has its own connection."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import aiohttp

from impatient_clients import Ending, Request

CONNECT_SECONDS: Final = 5.0
"""Time in seconds after which a client gives up an attempt to connect."""
PAUSE_SECONDS: Final = 1.0
"""Time in seconds after which a client repeats a request."""
BROKEN: Final = frozenset({Ending.LOST, Ending.CUT, Ending.SILENTLY_CUT})
"""Endings of a request whose connection ended."""


@dataclass
class Burst:
    """Requests that begin when the `with` block begins. Its end waits until all have ended.

    If the block fails, the requests are cancelled.
    """

    model: str
    key: str
    asked: Sequence[tuple[str, bool]]
    """URL of each request, and whether it asks for a stream."""
    repeats: bool = False
    """Whether a client repeats a request whose connection ended before the end of the answer."""
    timeout_seconds: float = 600.0
    tries: list[list[Request]] = field(default_factory=list)
    """The attempts of each request, in their order. They are updated while the requests run."""
    began: float = 0.0
    """Time of `time.monotonic` at which the requests began."""

    def __post_init__(self) -> None:
        self.tries = [[] for _ in self.asked]
        self._thread = ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    def __enter__(self) -> "Burst":
        self.began = time.monotonic()
        self._all = self._loop.create_task(self._send_all())
        self._ended = self._thread.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self._loop.call_soon_threadsafe(self._all.cancel)
        with self._thread:
            self._ended.result()

    @property
    def last(self) -> list[Request]:
        """The last attempt of each request."""
        return [tries[-1] for tries in self.tries]

    @property
    def repeated(self) -> int:
        """Number of requests that a client sent more than once."""
        return sum(len(tries) > 1 for tries in self.tries)

    def fewest_comments(self) -> int:
        """Return the number of comments that each stream has got at least."""
        streams = [tries for tries in self.tries if tries and tries[0].is_stream]
        return min((sum(it.comments for it in tries) for tries in streams), default=0)

    def unanswered(self) -> list[str]:
        """Return the problems of the requests whose last attempt was not answered."""
        return [
            f"{'stream' if it.is_stream else 'plain request'} {it.ending}: {it.problem}"
            for it in self.last
            if it.ending is not Ending.ANSWERED
        ]

    def summary(self) -> str:
        """Return the number of requests of each ending, and of those that were repeated."""
        counts = Counter(each.ending for each in self.last)
        ended = ", ".join(f"{counts[each]} {each}" for each in Ending if counts[each])
        return f"{ended}; {self.repeated} repeated; at least {self.fewest_comments()} comments"

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(asyncio.wait([self._all]))
        finally:
            self._loop.close()
        if not self._all.cancelled():
            self._all.result()

    async def _send_all(self) -> None:
        await asyncio.gather(*map(self._send, range(len(self.asked))))

    async def _send(self, number: int) -> None:
        url, is_stream = self.asked[number]
        timeout = aiohttp.ClientTimeout(total=self.timeout_seconds, sock_connect=CONNECT_SECONDS)
        while True:
            request = Request(url, self.model, is_stream)
            self.tries[number].append(request)
            headers = {"Authorization": f"Bearer {self.key}"}
            async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
                await request.send(session)
            if not self.repeats or request.ending not in BROKEN:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), PAUSE_SECONDS)


def half_streams(url: str, number: int) -> list[tuple[str, bool]]:
    """Return this number of requests to a URL, every second one for a stream."""
    return [(url, each % 2 == 1) for each in range(number)]
