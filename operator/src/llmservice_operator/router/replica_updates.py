"""Takes the lists of replicas that the metrics servers send, and answers with the pod's report."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aiohttp import web
from pydantic import ValidationError

from llmservice_operator.api.router_messages import ReplicaList
from llmservice_operator.names import ROUTER_REPLICAS_PATH
from llmservice_operator.router.picker_status import read_status
from llmservice_operator.router.replicas import KNOWN_SECONDS, LOOKUP_SECONDS, Replicas, Resolve
from llmservice_operator.router_settings import RouterSettings

logger = logging.getLogger(__name__)

SENDERS_PERIOD_SECONDS: Final = 5.0
"""Time in seconds between two lookups of the metrics servers."""
MOST_SENDERS: Final = 100
ARRIVAL_SECONDS: Final = 2.0
"""Longest time in seconds for which a list may arrive."""


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

    def add_to(self, app: web.Application) -> None:
        """Add the route to the application of the management port."""
        app.router.add_put(ROUTER_REPLICAS_PATH, self._take)

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
        self.accepted += 1
        report = (await read_status(self._settings.run_directory)).report
        return web.json_response(text=report.model_dump_json(by_alias=True))

    def _refuse(self, status: int, message: str) -> web.Response:
        self.refused += 1
        return web.json_response({"message": message}, status=status)
