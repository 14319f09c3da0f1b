"""Client of the metrics server: waits in the background for services that must be woken."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

import aiohttp
from pydantic import TypeAdapter, ValidationError

from llmservice_operator import names
from llmservice_operator.api.wake import Wake

logger = logging.getLogger(__name__)

WAIT_SECONDS: Final = 30.0
"""Time in seconds after which the metrics server answers even without a service to wake."""
TIMEOUT_SECONDS: Final = 3.0
"""Longest time in seconds that the connection and the transfer of an answer take."""
AGAIN_SECONDS: Final = 0.5
"""Time in seconds between two questions while services must be woken."""
TOLD_AGAIN_SECONDS: Final = 5.0
"""Time in seconds after which `on_wake` is called again for the same service. The pass after the
first call usually starts a replica, and the metrics server learns of it later."""
AWAY_SECONDS: Final = 1.0
"""Time in seconds between two questions while the metrics server does not answer."""
KEPT_SECONDS: Final = 10.0
"""Time in seconds for which a service must be woken after the metrics server last named it. While
the metrics server asks a router pod again, it does not name the service for a moment."""
LONGEST_ANSWER_BYTES: Final = 4 * 2**20
LONGEST_REFUSAL_BYTES: Final = 500
"""Longest part of a refusal that is read, in bytes."""

_WAKES = TypeAdapter(dict[str, Wake])


class WakeClient:
    """Keeps the services that must be woken. `run` waits for them."""

    def __init__(
        self,
        url: str | None,
        on_wake: Callable[[tuple[str, str]], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
        headers: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`url` is the metrics server's address without a path, or None if there is no metrics
        server. `headers` returns the headers of a request, with the token of this process.

        `on_wake` is called with the namespace and name of each service that must be woken at once,
        and again every TOLD_AGAIN_SECONDS while it must be woken.
        """
        self._url = url and f"{url.rstrip('/')}{names.WAKES_PATH}"
        self._on_wake = on_wake
        self._monotonic = monotonic
        self._headers = headers
        self._wakes: dict[str, tuple[float, Wake]] = {}
        """Services that must be woken, each with the time of the last answer that named it."""
        self._told_at: dict[str, float] = {}
        """Times of the last calls of `on_wake`."""
        self._is_answering = True

    def read(self, namespace: str, name: str) -> Wake | None:
        """Return the requests that wait for this service to wake; None if there are none."""
        named_at, wake = self._wakes.get(f"{namespace}/{name}", (0.0, None))
        return wake if self._monotonic() - named_at <= KEPT_SECONDS else None

    async def run(self) -> None:
        """Wait until cancelled. Without a metrics server, return immediately."""
        if not self._url:
            return
        timeout = aiohttp.ClientTimeout(
            total=WAIT_SECONDS + TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS
        )
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                pause = await self.ask(session, self._url)
                await asyncio.sleep(pause)

    async def ask(self, session: aiohttp.ClientSession, url: str) -> float:
        """Wait once for services that must be woken. Return the seconds until the next time."""
        began = self._monotonic()
        try:
            found = await self._read(session, url)
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            # Only the first failure of an outage is logged as a warning.
            level = logging.WARNING if self._is_answering else logging.DEBUG
            logger.log(level, "no wakes from %s: %s", url, str(error) or "no answer in time")
            self._is_answering = False
            return AWAY_SECONDS
        self._is_answering = True
        now = self._monotonic()
        recent = {key: it for key, it in self._wakes.items() if now - it[0] <= KEPT_SECONDS}
        self._wakes = {**recent, **{key: (now, wake) for key, wake in found.items()}}
        self._tell(found, now)
        # A metrics server that is about to end answers at once.
        is_early = now - began < AGAIN_SECONDS
        return AGAIN_SECONDS if found or is_early else 0.0

    def _tell(self, found: Mapping[str, Wake], now: float) -> None:
        recent = {key: at for key, at in self._told_at.items() if now - at < TOLD_AGAIN_SECONDS}
        self._told_at = {**dict.fromkeys(found, now), **recent}
        for key in found.keys() - recent.keys():
            self._on_wake(names.key_of(key))

    async def _read(self, session: aiohttp.ClientSession, url: str) -> Mapping[str, Wake]:
        """Raises ClientError or TimeoutError if the request fails, ValueError for an answer that
        names no services, and RecursionError for an answer that is nested too deeply.
        """
        params = {"wait": f"{WAIT_SECONDS:g}"}
        async with session.get(
            url, params=params, headers=self._headers(), allow_redirects=False
        ) as answer:
            if answer.status != 200:
                said = (await answer.content.read(LONGEST_REFUSAL_BYTES)).decode(errors="replace")
                raise ValueError(f"the answer has status {answer.status}: {said}")
            text = bytearray()
            async for chunk in answer.content.iter_any():
                text += chunk
                if len(text) > LONGEST_ANSWER_BYTES:
                    raise ValueError(f"the answer has more than {LONGEST_ANSWER_BYTES} bytes")
        try:
            return _WAKES.validate_json(bytes(text))
        except ValidationError as error:
            raise ValueError("the answer names no services") from error
