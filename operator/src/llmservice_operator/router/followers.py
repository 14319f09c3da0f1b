"""Tells the other pickers of the service each choice of this picker, and what becomes of it."""

import asyncio
import ipaddress
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import grpc

from llmservice_operator.router import handover_wire
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.routing.handover import Message, copy_of

SERVICE: Final = "llmservice.router.v1.Picker"
METHOD: Final = "Follow"

PAUSE_SECONDS: Final = 0.05
"""Time in seconds for which messages are collected, because each list takes about 0.5 ms of CPU
time. If the picker is killed, the messages of this time are lost."""

HEARTBEAT_SECONDS: Final = 1.0
"""Time in seconds after which an empty list is sent, so that a follower notices a hung picker."""

WRITE_SECONDS: Final = 5.0
"""Longest time in seconds that a follower may take to accept a list."""

LIST_BYTES: Final = 64 * 1024
"""Size in bytes at which a list ends."""

MOST_QUEUED_BYTES: Final = 4 * 1024**2
"""Maximum size in bytes of the messages that wait for one follower."""


@dataclass
class _Follower:
    """The messages that wait for one follower."""

    messages: deque[bytes] = field(default_factory=deque)
    size: int = 0
    has_news: asyncio.Event = field(default_factory=asyncio.Event)
    is_dropped: bool = False

    def add(self, message: bytes) -> None:
        if self.is_dropped:
            return
        self.messages.append(message)
        self.size += len(message)
        self.has_news.set()
        if self.size > MOST_QUEUED_BYTES:
            self.drop()

    def drop(self) -> None:
        self.is_dropped, self.size = True, 0
        self.messages.clear()
        self.has_news.set()

    def take(self) -> list[bytes]:
        """Remove and return the messages of the next list."""
        taken = next(_lists(self._remove()))
        if not self.messages:
            self.has_news.clear()
        return taken

    def _remove(self) -> Iterator[bytes]:
        while self.messages:
            message = self.messages.popleft()
            self.size -= len(message)
            yield message


class Followers:
    """The server's side of the streams to the pickers that follow this one.

    A follower must have the address of a router pod of the service and name the same service. The
    choices never wait for a follower: one that is too slow is dropped, and begins with a new copy.
    """

    def __init__(
        self,
        chooser: Chooser,
        identity: str,
        is_ready: Callable[[], bool],
    ) -> None:
        """`identity` is the namespace and the name of the service. `is_ready` returns whether this
        picker chooses replicas already.
        """
        self._chooser = chooser
        self._identity = identity.encode()
        self._is_ready = is_ready
        self._hosts: frozenset[str] = frozenset()
        self._followers: dict[str, _Follower] = {}
        """The follower at each IP address. A new call replaces the last one."""

    def __len__(self) -> int:
        return len(self._followers)

    def admit(self, pickers: Iterable[str]) -> None:
        """Admit the pickers at these addresses, whatever their port, and no others."""
        self._hosts = frozenset(map(_host, pickers))

    def tell(self, message: Message) -> None:
        """Queue a message for every follower."""
        if self._followers:
            encoded = handover_wire.encode(message)
            for each in self._followers.values():
                each.add(encoded)

    def handler(self) -> grpc.GenericRpcHandler:
        method = grpc.unary_stream_rpc_method_handler(self._follow)
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    async def _follow(self, identity: bytes, context: Any) -> None:
        host = _host(unquote(context.peer()).partition(":")[2])
        if host not in self._hosts or identity != self._identity:
            # A picker that knows nothing yet must not let others wait for its copy.
            codes = grpc.StatusCode
            code = codes.PERMISSION_DENIED if self._is_ready() else codes.UNAVAILABLE
            await context.abort(code, "the caller is not known as a router pod of this service")
        if host in self._followers:
            self._followers[host].drop()
        follower = self._followers[host] = _Follower()
        # No choice is made between this copy and the first message.
        chooser = self._chooser
        copy = copy_of(chooser.router, chooser.owners, chooser.clock(), chooser.limiter)
        try:
            await context.send_initial_metadata(())
            for messages in _lists(map(handover_wire.encode, copy)):
                await _write(context, messages)
            await self._send(follower, context)
        except TimeoutError:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the follower is too slow")
        finally:
            if self._followers.get(host) is follower:
                del self._followers[host]

    async def _send(self, follower: _Follower, context: Any) -> None:
        """Send messages until the follower leaves. Raises TimeoutError if it is too slow."""
        while not follower.is_dropped:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await follower.has_news.wait()
            except TimeoutError:
                pass
            await _write(context, follower.take())
            await asyncio.sleep(PAUSE_SECONDS)
        raise TimeoutError


def _lists(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the messages in lists of about LIST_BYTES. The last list may be empty."""
    some, size = list[bytes](), 0
    for message in messages:
        some.append(message)
        size += len(message)
        if size >= LIST_BYTES:
            yield some
            some, size = [], 0
    yield some


async def _write(context: Any, messages: list[bytes]) -> None:
    async with asyncio.timeout(WRITE_SECONDS):
        await context.write(handover_wire.join(messages))


def _host(address: str) -> str:
    """Return the IP address in an address with a port."""
    return str(ipaddress.ip_address(address.rpartition(":")[0].strip("[]")))
