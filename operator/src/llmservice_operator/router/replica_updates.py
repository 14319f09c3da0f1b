"""Takes the lists of replicas that the metrics servers send, and answers with the pod's report.

A metrics server may also ask for the next held request, so that it notices the first request to a
service without replicas at once.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from llmservice_operator.api.router_messages import ReplicaList
from llmservice_operator.names import ROUTER_HELD_PATH, ROUTER_REPLICAS_PATH
from llmservice_operator.router.picker_status import read_status, wait_until_held
from llmservice_operator.router.replicas import KNOWN_SECONDS, LOOKUP_SECONDS, Replicas, Resolve
from llmservice_operator.router_settings import RouterSettings

logger = logging.getLogger(__name__)

SENDERS_PERIOD_SECONDS: Final = 5.0
"""Time in seconds between two lookups of the metrics servers."""
MOST_SENDERS: Final = 100
ARRIVAL_SECONDS: Final = 2.0
"""Longest time in seconds for which a list may arrive."""
REFUSAL_SECONDS: Final = 60.0
"""Time in seconds after which a refusal that no metrics server repeats is forgotten."""
LONGEST_WATCH_SECONDS: Final = 600.0
MOST_WATCHES: Final = 100
"""Largest number of questions for the next held request that wait at the same time."""
LEFT_SECONDS: Final = 5.0
"""Longest time in seconds until a question whose sender has left ends."""


class ReplicaUpdates:
    """The route for the lists, and the addresses that may use it.

    DNS names the metrics servers. An address is known for `KNOWN_SECONDS` after DNS last named it,
    so that lists are accepted while DNS does not answer.
    """

    def __init__(
        self,
        settings: RouterSettings,
        replicas: Replicas,
        resolve: Resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._replicas = replicas
        self._resolve = resolve
        self._clock = clock
        self._named_at: dict[str, float] = {}
        """Time when DNS last named an address of a metrics server."""
        self.accepted = 0
        """Number of lists that were accepted."""
        self.refused = 0
        self._refusal: str | None = None
        self._refusal_until = -math.inf
        self.watches = 0
        """Number of questions that wait for a held request."""
        self._ends = asyncio.Event()

    @property
    def refusal(self) -> str | None:
        """Sentence of the metrics servers about why no replica will come; None if one may come."""
        return self._refusal if self._clock() < self._refusal_until else None

    def add_to(self, app: web.Application) -> None:
        """Add the routes to the application of the management port."""
        app.router.add_put(ROUTER_REPLICAS_PATH, self._take)
        app.router.add_get(ROUTER_HELD_PATH, self._watch)
        app.on_shutdown.append(self._end_watches)

    async def run(self) -> None:
        """Look up the metrics servers for ever."""
        host = self._settings.metrics_servers_host
        while host is not None:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    found = list(await self._resolve(host))
            except (OSError, TimeoutError) as error:
                logger.debug("DNS names no metrics server: %s", error)
            else:
                now = self._clock()
                self._named_at |= dict.fromkeys(found[:MOST_SENDERS], now)
                self._named_at = {
                    each: at for each, at in self._named_at.items() if now - at < KNOWN_SECONDS
                }
            await asyncio.sleep(SENDERS_PERIOD_SECONDS)

    def knows(self, address: str | None) -> bool:
        """Return whether a metrics server has this address."""
        named_at = self._named_at.get(address or "")
        return named_at is not None and self._clock() - named_at < KNOWN_SECONDS

    async def _take(self, request: web.Request) -> web.Response:
        if not self.knows(request.remote):
            return self._refuse(403, "only the metrics server may send lists of replicas")
        try:
            async with asyncio.timeout(ARRIVAL_SECONDS):
                listed = ReplicaList.model_validate_json(await request.read())
        except TimeoutError:
            return self._refuse(408, f"the list did not arrive within {ARRIVAL_SECONDS:.0f} s")
        except ValidationError:
            return self._refuse(400, "the body is not a list of replicas")
        own = self._settings.namespace, self._settings.service
        if (listed.namespace, listed.service) != own:
            return self._refuse(403, "the list is about another service")
        self._replicas.tell(listed.replicas)
        if listed.refusal != self.refusal:
            self._replicas.changed.set()
        self._refusal, self._refusal_until = listed.refusal, self._clock() + REFUSAL_SECONDS
        self.accepted += 1
        return await self._report()

    async def _watch(self, request: web.Request) -> web.Response:
        """Answer as soon as this pod holds a request, or after the given time."""
        if not self.knows(request.remote):
            return self._refuse(403, "only the metrics server may ask for held requests")
        try:
            seconds = min(float(request.query.get("wait", "0")), LONGEST_WATCH_SECONDS)
        except ValueError:
            return self._refuse(400, "wait must be a number of seconds")
        if self.watches >= MOST_WATCHES:
            return self._refuse(503, "too many questions wait for a held request")
        deadline = self._clock() + seconds
        self.watches += 1
        waits = (
            asyncio.ensure_future(wait_until_held(self._settings.run_directory)),
            asyncio.ensure_future(self._ends.wait()),
        )
        try:
            while not any(each.done() for each in waits):
                left = deadline - self._clock()
                if not left > 0 or request.transport is None or request.transport.is_closing():
                    break
                await asyncio.wait(
                    waits, timeout=min(left, LEFT_SECONDS), return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            self.watches -= 1
            for each in waits:
                each.cancel()
        return await self._report()

    async def _end_watches(self, _: web.Application) -> None:
        self._ends.set()

    async def _report(self) -> web.Response:
        found = (await read_status(self._settings.run_directory)).report
        report = found.model_copy(update={"can_be_watched": True})
        return web.json_response(text=report.model_dump_json(by_alias=True))

    def _refuse(self, status: int, message: str) -> web.Response:
        self.refused += 1
        return web.json_response({"message": message}, status=status)
