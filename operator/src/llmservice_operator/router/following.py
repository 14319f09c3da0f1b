"""Follows the other pickers of the service, so that this picker can take over from each of them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing
from itertools import count
from typing import Final

import grpc

from llmservice_operator.router import handover_wire
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.followers import HEARTBEAT_SECONDS, METHOD, SERVICE
from llmservice_operator.routing.handover import Copied, Message, OtherRouter

logger = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 2.0
"""Time in seconds without an answer after which another picker counts as away."""

SILENCE_SECONDS: Final = 3 * HEARTBEAT_SECONDS

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 2.0
"""Longest time in seconds before the next call. Each call doubles the time."""

WELL_SECONDS: Final = 30.0
"""Duration in seconds of a stream after which the next call comes soon again."""

WAIT_SECONDS: Final = 40.0
"""Longest time in seconds for which this picker waits for copies before it chooses replicas. The
DNS of a cluster may name a new pod to the others 30 s late, and they refuse its calls until then.
"""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", handover_wire.LONGEST_LIST),
    # With the shared pool, a new channel would inherit the waits of the last one.
    ("grpc.use_local_subchannel_pool", 1),
)


class Following:
    """The client's side of the streams from the other pickers."""

    def __init__(self, chooser: Chooser, identity: str) -> None:
        """`identity` is the namespace and the name of the service."""
        self._chooser = chooser
        self._identity = identity.encode()
        self._numbers = count(-1, -1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """The task that follows the picker at each address."""
        self._missing: set[str] | None = None
        """Pickers whose copies are awaited. None before the first update."""
        self.followed: set[str] = set()
        """Addresses of the pickers of which this picker has a copy, and that send more."""
        self.on_lost: Callable[[str], None] = lambda _: None
        """Called with each address that leaves `followed`."""

    @property
    def is_ready(self) -> bool:
        """Whether this picker has a copy of every other picker that is not away."""
        return self._missing is not None and not self._missing

    def update(self, addresses: Collection[str]) -> None:
        """Follow the pickers at these addresses, and no others."""
        if self._missing is None:
            self._missing = set(addresses)
            asyncio.get_running_loop().call_later(WAIT_SECONDS, self._missing.clear)
        for address in self._tasks.keys() - set(addresses):
            self._tasks.pop(address).cancel()
            self._missing.discard(address)
        for address in set(addresses) - self._tasks.keys():
            self._tasks[address] = asyncio.create_task(self._follow_for_ever(address))

    async def close(self) -> None:
        """Follow no picker any more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()

    async def _follow_for_ever(self, address: str) -> None:
        pauses = _pauses()
        while True:
            began = time.monotonic()
            try:
                await self._follow(address)
            except grpc.aio.AioRpcError as error:
                is_away = error.code() is not grpc.StatusCode.PERMISSION_DENIED
                problem = error.code().name
            except (TimeoutError, ValueError) as error:
                is_away, problem = True, str(error) or "no answer"
            else:
                is_away, problem = True, "it ended the stream"
            logger.debug("cannot follow the picker at %s: %s", address, problem)
            if is_away:
                self._settle(address)
            if time.monotonic() - began > WELL_SECONDS:
                pauses = _pauses()
            await asyncio.sleep(next(pauses))

    async def _follow(self, address: str) -> None:
        """Follow a picker until it ends the stream.

        Raises AioRpcError, TimeoutError without an answer, and ValueError for messages of another
        form.
        """
        chooser, is_copied = self._chooser, False
        other = OtherRouter(chooser.router, chooser.owners, self._numbers, chooser.limiter)
        try:
            async with aclosing(_messages(address, self._identity)) as lists:
                async for messages in lists:
                    chooser.follow(other, messages)
                    if Copied() in messages:
                        is_copied = True
                        self.followed.add(address)
                        logger.info("following the picker at %s", address)
                        self._settle(address)
        finally:
            chooser.lose(other)
            self.followed.discard(address)
            if is_copied:
                self.on_lost(address)
                logger.info("no longer following the picker at %s", address)

    def _settle(self, address: str) -> None:
        """Wait no longer for the copy of a picker."""
        if self._missing is not None:
            self._missing.discard(address)


async def _messages(address: str, identity: bytes) -> AsyncGenerator[list[Message], None]:
    """Yield the messages of the picker at an address."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        call = channel.unary_stream(f"/{SERVICE}/{METHOD}")(identity)
        async with asyncio.timeout(CONNECT_SECONDS):
            await call.initial_metadata()
        while True:
            async with asyncio.timeout(SILENCE_SECONDS):
                content = await call.read()
            if content is grpc.aio.EOF:
                return
            yield handover_wire.decode(content)


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
