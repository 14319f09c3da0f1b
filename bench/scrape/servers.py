"""Simulated model servers on loopback, all in one process: `python -m scrape.servers FILE`.

Each address of the network 127.128.0.0/9 is a replica. The process writes its port into FILE. Then
it writes, once a second, when each replica was asked.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, cast

from operator_support.metrics import Engine

FIRST: Final = int(ip_address("127.128.0.0"))
FIRST_SILENT: Final = int(ip_address("127.192.0.0"))
"""From here on, replicas accept connections and never answer."""
RATES: Final = 8
"""Number of different loads, in steps of half a request per second."""
SLOTS_PER_SECOND: Final = 4
"""Replicas with the same load send the same answer for a part of a second, so that the simulation
takes little CPU time."""


def address_of(number: int, *, answers: bool) -> str:
    """Return the address of a replica."""
    return str(ip_address((FIRST if answers else FIRST_SILENT) + number))


class Replicas:
    """The engines, and when each was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {}
        """The time of the last request and the longest time between two, of each address."""
        self._engines = [Engine(rate=0.5 * (number + 1)) for number in range(RATES)]
        for each in self._engines:
            each.started -= 3600
        self._answer = lru_cache(2 * RATES)(self._build)

    def note(self, address: str) -> None:
        now = time.time()
        last = self.asked.setdefault(address, [now, 0.0])
        last[0], last[1] = now, max(last[1], now - last[0])

    def reset(self) -> None:
        """Forget the longest times, but not the last requests."""
        for last in self.asked.values():
            last[1] = 0.0

    def answer(self, number: int) -> bytes:
        return self._answer(number % RATES, int(time.time() * SLOTS_PER_SECOND))

    def _build(self, load: int, _: int) -> bytes:
        body = json.dumps(self._engines[load].autoscale()).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Connection(asyncio.Protocol):
    """A connection to a replica. Each request fits into one packet."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address: str = transport.get_extra_info("sockname")[0]
        self._number = int(ip_address(self._address))

    def data_received(self, data: bytes) -> None:
        self._replicas.note(self._address)
        if self._number < FIRST_SILENT:
            self._transport.write(self._replicas.answer(self._number))


async def serve(path: Path) -> None:
    """Serve for ever. A file `PATH.reset` restarts the measurement of the longest times."""
    replicas, loop = Replicas(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(replicas), "0.0.0.0", 0, backlog=4096)
    port: int = server.sockets[0].getsockname()[1]
    reset = path.with_suffix(".reset")
    while True:
        if reset.exists():
            replicas.reset()
            reset.unlink()
        state: dict[str, Any] = {"port": port, "asked": replicas.asked}
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(state))
        unfinished.rename(path)
        await asyncio.sleep(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(Path(sys.argv[1])))
