"""A proxy that closes silent connections, as load balancers do."""

import asyncio
import threading
import time
from typing import Final

CHUNK: Final = 64 * 1024


class ImpatientProxy:
    """Passes connections on to an address, as long as the `with` block runs."""

    def __init__(self, host: str, port: int, idle_seconds: float) -> None:
        """A connection is closed when neither side has sent a byte for `idle_seconds`."""
        self.closed = 0
        """Number of connections that were closed because they were silent."""
        self.url = ""
        self._to = host, port
        self._idle_seconds = idle_seconds
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "ImpatientProxy":
        self._thread.start()
        assert self._listens.wait(timeout=30), "the proxy does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        self._listens.set()
        async with server:
            await self._over.wait()

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(*self._to)
        heard_at = time.monotonic()

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal heard_at
            while chunk := await source.read(CHUNK):
                heard_at = time.monotonic()
                sink.write(chunk)
                await sink.drain()

        copies = [
            asyncio.create_task(copy(client, to_server)),
            asyncio.create_task(copy(server, to_client)),
        ]
        try:
            # The clients of the tests close a connection only as a whole.
            while not any(each.done() for each in copies):
                left = heard_at + self._idle_seconds - time.monotonic()
                if left <= 0:
                    self.closed += 1
                    break
                await asyncio.wait(copies, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in copies:
                each.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            for writer in (to_client, to_server):
                writer.close()
