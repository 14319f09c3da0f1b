"""The HTTPS port, whose certificate and client authorities change while it serves."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import datetime

from aiohttp import web

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError
from llmservice_operator.kinds import CONFIG_MAPS
from llmservice_operator.metrics_server.certificates import issue, server_context
from llmservice_operator.metrics_server.front_proxy import (
    CONFIG_NAME,
    CONFIG_NAMESPACE,
    FrontProxy,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""Time in seconds between two reads of the ConfigMap with the API server's authorities."""
SPREAD_SECONDS = 30.0
"""Longest time in seconds that a new authority in the APIService takes to reach every API
server."""


class SecureServer:
    def __init__(
        self,
        cluster: Cluster,
        port: int,
        names: Sequence[str],
        now: Callable[[], datetime],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`names` are the DNS names by which the API server reaches this server."""
        self.front_proxy: FrontProxy | None = None
        """Authentication of the API server; None before it is known."""
        self.serving = asyncio.Event()
        self.authority_changed: Callable[[], None] = lambda: None
        """Called when there is a new authority for clients to trust."""
        self._port = port
        self._names = names
        self._now = now
        self._certificate = self._next = issue(names, now())
        self._cluster = cluster
        self._poll_seconds = poll_seconds
        self._site: web.TCPSite | None = None

    def authority(self) -> bytes:
        """Return the authority, in PEM, that clients must trust. It is that of the next certificate
        if there is one, else that of the present certificate.
        """
        return self._next.authority

    @property
    def expires_at(self) -> datetime:
        """End of the certificate that this server presents."""
        return self._certificate.expires_at

    async def run(self, app: web.Application) -> None:
        """Serve for ever, as soon as the API server's authorities are known."""
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            while True:
                if self._now() >= self._next.renew_at:
                    await self._renew()
                try:
                    config = await self._cluster.read(CONFIG_MAPS, CONFIG_NAMESPACE, CONFIG_NAME)
                except ClusterError as error:
                    logger.warning("the API server's authorities cannot be read: %s", error)
                else:
                    await self._refresh(runner, config)
                await asyncio.sleep(self._poll_seconds)
        finally:
            await runner.cleanup()

    async def _renew(self) -> None:
        """Announce a new authority, and wait until clients trust its certificate."""
        self._next = issue(self._names, self._now())
        self.authority_changed()
        await asyncio.sleep(SPREAD_SECONDS)

    async def _refresh(self, runner: web.AppRunner, config: Manifest | None) -> None:
        """Open the port again when the authorities or the certificate have changed."""
        found = FrontProxy.from_config(config) if config is not None else None
        if found is None:
            logger.error(
                "%s/%s names no front proxy: this API server aggregates no APIs",
                *(CONFIG_NAMESPACE, CONFIG_NAME),
            )
            return
        if self._site is not None and (found, self._next) == (self.front_proxy, self._certificate):
            return
        try:
            context = server_context(self._next, found.client_authorities)
        except ssl.SSLError as error:
            logger.error("%s: its authorities cannot be read: %s", CONFIG_NAME, error)
            return
        site = web.TCPSite(runner, host=None, port=self._port, ssl_context=context, reuse_port=True)
        await site.start()
        if self._site is not None:
            await self._site.stop()
            # A client that the old authorities admitted must authenticate again.
            for connection in runner.server.connections if runner.server else ():
                connection.close()
        self._site, self.front_proxy, self._certificate = site, found, self._next
        self.serving.set()
        logger.info("external metrics are served on port %d", self._port)
