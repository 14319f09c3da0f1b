"""Router pods of services without replicas: real HTTP, each at a loopback address of its own."""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from llmservice_operator import names
from llmservice_operator.api.router_messages import RouterReport
from llmservice_operator.cluster import Key


def address_of(number: int) -> str:
    """Return the loopback address of a router pod."""
    return f"127.1.{number // 250}.{number % 250 + 1}"


@dataclass
class IdleRouters:
    """Router pods that hold requests of the services that a test chooses."""

    services: dict[str, Key] = field(default_factory=dict)
    """Service of the router pod at each address."""
    questions: int = 0
    """Number of questions that wait for a held request."""
    _held: dict[Key, int] = field(default_factory=dict)
    _changed: defaultdict[Key, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event)
    )
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def hold(self, services: Iterable[Key], requests: int) -> None:
        """Let every router pod of these services hold this number of requests, from now on."""

        def change() -> None:
            for key in services:
                self._held[key] = requests
                self._changed[key].set()

        self._loop.call_soon_threadsafe(change)

    @contextmanager
    def listening(self) -> Iterator["IdleRouters"]:
        """Listen at the addresses of all router pods."""
        thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        thread.start()
        runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_put(names.ROUTER_REPLICAS_PATH, self._take_replicas)
        app.router.add_get(names.ROUTER_HELD_PATH, self._wait_until_held)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        for address in self.services:
            await web.TCPSite(runner, address, names.MANAGEMENT_PORT).start()
        return runner

    async def _take_replicas(self, request: web.Request) -> web.Response:
        return self._report(request)

    async def _wait_until_held(self, request: web.Request) -> web.Response:
        changed = self._changed[self._service_of(request)]
        self.questions += 1
        try:
            async with asyncio.timeout(float(request.query["wait"])):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self.questions -= 1
        return self._report(request)

    def _report(self, request: web.Request) -> web.Response:
        held = self._held.get(self._service_of(request), 0)
        report = RouterReport(held_requests=held, can_be_watched=True)
        return web.json_response(text=report.model_dump_json(by_alias=True))

    def _service_of(self, request: web.Request) -> Key:
        assert request.transport is not None
        return self.services[request.transport.get_extra_info("sockname")[0]]
