"""Clients that send requests without a pause and repeat none, and record each result.

They keep their connections. One half asks for streams, the other for answers in one piece.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import aiohttp

TIMEOUT_SECONDS = 120
PAUSE_SECONDS = 0.2
"""Time in seconds between an answer and the next request of the same client."""
PLAIN_TOKENS = 8
STREAM_TOKENS = 150


class Ending(StrEnum):
    """End of a request, as its client sees it."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """An error status, or an error event before the first token."""
    LOST = "lost"
    """The connection ended before the answer began."""
    CUT = "cut"
    """An error in the middle of the answer."""
    SILENTLY_CUT = "silently cut"
    """The answer is too short, but the client sees no error."""


@dataclass(frozen=True)
class Outcome:
    """One request. Times are in seconds of `time.monotonic`."""

    is_stream: bool
    began: float
    ended: float
    first_seconds: float
    """Time until the first token of a stream, or until the complete answer."""
    ending: Ending
    problem: str = ""

    def __str__(self) -> str:
        kind = "stream" if self.is_stream else "plain request"
        return f"{kind} {self.ending} after {self.ended - self.began:.2f} s: {self.problem}"


@dataclass
class ImpatientClients:
    """Clients that run from the start to the end of the `with` block.

    A client opens a new connection after `requests_per_connection` requests; None for never.
    """

    url: str
    model: str
    key: str
    clients: int = 8
    requests_per_connection: int | None = 5
    pause_seconds: float = PAUSE_SECONDS
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run)
        self._ended = [0] * self.clients

    def __enter__(self) -> "ImpatientClients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait until all requests have ended."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def go_on(self, requests: int) -> Callable[[], bool]:
        """Return a check that succeeds once each client has ended this number of requests more."""
        goals = [ended + requests for ended in self._ended]

        def check() -> bool:
            # A client that sends nothing any more has failed, and its thread shows the reason.
            assert self._thread.is_alive(), "the clients have ended"
            return all(ended >= goal for ended, goal in zip(self._ended, goals, strict=True))

        return check

    def since(self, moment: float) -> list[Outcome]:
        """Return the requests that ended after a moment."""
        return [each for each in self.outcomes if each.ended > moment]

    def failures(self) -> list[str]:
        """Return a description of each request that failed or was cut."""
        return [str(each) for each in self.outcomes if each.ending is not Ending.ANSWERED]

    def _run(self) -> None:
        self._loop.run_until_complete(self._all())
        self._loop.close()

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        is_stream = number % 2 == 0
        while not self._over.is_set():
            async with aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {self.key}"},
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            ) as session:
                for _ in self._requests_of_a_connection():
                    request = Request(self.url, self.model, is_stream)
                    self.outcomes.append(await request.send(session))
                    self._ended[number] += 1
                    try:
                        await asyncio.wait_for(self._over.wait(), self.pause_seconds)
                    except TimeoutError:
                        continue
                    return

    def _requests_of_a_connection(self) -> Iterator[int]:
        number = self.requests_per_connection
        return itertools.count() if number is None else iter(range(number))


@dataclass
class Request:
    """A request, and the part of its answer that has arrived."""

    url: str
    model: str
    is_stream: bool
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Time of the first token."""
    comments: int = 0
    """Comments of the router, which it sends while the request waits for a replica."""
    retry_after: str = ""
    """Header Retry-After of a refusal."""
    ending: Ending = Ending.SILENTLY_CUT
    problem: str = "the answer is too short"

    async def send(self, session: aiohttp.ClientSession) -> Outcome:
        """Send the request, and read its answer to the end."""
        try:
            async with session.post(f"{self.url}/v1/completions", json=self._body()) as response:
                if response.status != 200:
                    self.retry_after = response.headers.get("Retry-After", "")
                    self._end(Ending.REFUSED, f"{response.status} {await response.text()}")
                elif self.is_stream:
                    await self._read_events(response)
                else:
                    await self._read_whole(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            self._end(Ending.CUT if self.first else Ending.LOST, repr(error))
        ended = time.monotonic()
        first = (self.first or ended) - self.began
        return Outcome(self.is_stream, self.began, ended, first, self.ending, self.problem)

    def _body(self) -> dict[str, object]:
        return {
            "model": self.model,
            # Every prompt is different, so that the prefix cache saves nothing.
            "prompt": f"{time.monotonic()} The sea in winter is grey and cold",
            "max_tokens": STREAM_TOKENS if self.is_stream else PLAIN_TOKENS,
            "ignore_eos": True,
            "stream": self.is_stream,
        }

    def _end(self, ending: Ending, problem: str = "") -> None:
        self.ending, self.problem = ending, problem

    async def _read_whole(self, response: aiohttp.ClientResponse) -> None:
        self.first = time.monotonic()
        answer = await response.json()
        if answer["usage"]["completion_tokens"] == PLAIN_TOKENS:
            self._end(Ending.ANSWERED)

    async def _read_events(self, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if line.startswith(b":"):
                self.comments += 1
            if not line.startswith(b"data: "):
                continue  # a comment, or the end of an event
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                self._end(Ending.ANSWERED)
                return
            if "error" in json.loads(data):
                self._end(Ending.CUT if self.first else Ending.REFUSED, data.decode())
                return
            self.first = self.first or time.monotonic()


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the number of requests of each ending, and the longest time to a first token."""
    counts = Counter(each.ending for each in outcomes)
    ended = ", ".join(f"{counts[each]} {each}" for each in Ending if counts[each])
    slowest = max((each.first_seconds for each in outcomes), default=0.0)
    return f"{ended}; slowest first token {slowest:.1f} s"
