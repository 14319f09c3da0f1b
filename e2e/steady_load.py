"""Sends requests at a constant rate, from clients that keep their connections."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import aiohttp

ANSWER_TOKENS = 24
TIMEOUT_SECONDS = 120


@dataclass
class SteadyLoad:
    """Load that starts with the `with` block, and ends with the block or with `stop`.

    A response with an unexpected number of tokens is a failure.

    kube-proxy chooses a pod for each connection, so a client that keeps its connection never
    reaches a new pod. With `requests_per_connection`, a client opens a new connection after this
    number of requests.
    """

    url: str
    model: str
    rate: float | None
    """Request rate of all clients together, in requests per second. With None, each client sends
    its next request as soon as it has the previous response."""
    requests_per_connection: int | None = None
    clients: int = 32
    seconds: float = 0.0
    """Duration of the load in seconds, until the last response; 0 while the load runs."""
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "SteadyLoad":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop sending requests, and wait until all requests have ended.

        A second call does nothing.
        """
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        self._loop.run_until_complete(self._clients())
        self._loop.close()
        self.seconds = time.monotonic() - began

    async def _clients(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        period = 0.0 if self.rate is None else self.clients / self.rate
        due = time.monotonic() + number * period / self.clients
        while not self._over.is_set():
            async with aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            ) as session:
                sent = 0
                while sent != self.requests_per_connection and not await self._is_over_at(due):
                    await self._ask(session)
                    sent += 1
                    # A client that is late makes up for at most one period.
                    due = max(due + period, time.monotonic() - period)

    async def _is_over_at(self, due: float) -> bool:
        """Wait until the next request is due or the load has ended; return whether it has ended."""
        try:
            await asyncio.wait_for(self._over.wait(), max(0.001, due - time.monotonic()))
        except TimeoutError:
            return False
        return True

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        body = {
            "model": self.model,
            # Every prompt is different, so that the prefix cache saves nothing.
            "prompt": f"{time.monotonic()} The sea in winter is grey and cold",
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
        }
        try:
            async with session.post(f"{self.url}/v1/completions", json=body) as response:
                answer = await response.json()
                tokens = answer["usage"]["completion_tokens"] if response.status == 200 else 0
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures.append(repr(error))
            return
        if tokens == ANSWER_TOKENS:
            self.answered += 1
        else:
            self.failures.append(f"{response.status}: {str(answer)[:200]}")
