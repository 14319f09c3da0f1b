"""Client of Envoy's admin socket."""

from pathlib import Path
from typing import Final

import aiohttp

TIMEOUT_SECONDS: Final = 2.0


class EnvoyAway(Exception):
    """Envoy does not answer on its admin socket."""


class EnvoyAdmin:
    """Reads the state of Envoy, and makes it drain. The caller must close it."""

    def __init__(self, socket: Path) -> None:
        self._session = aiohttp.ClientSession(
            "http://envoy",
            connector=aiohttp.UnixConnector(str(socket)),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )

    async def close(self) -> None:
        await self._session.close()

    async def is_live(self) -> bool:
        """Return whether Envoy accepts requests. It accepts none before it has read its files."""
        try:
            return await self._ask("GET", "/ready") == "LIVE\n"
        except EnvoyAway:
            return False

    async def has_read(self, clusters: tuple[str, ...], version: str) -> bool:
        """Return whether the clusters have the endpoints of this version."""
        stats = await self._stats(r"^cluster\.[^.]+\.version_text$")
        return all(stats.get(f"cluster.{name}.version_text") == f'"{version}"' for name in clusters)

    async def active_requests(self, listener: str) -> int:
        """Return the number of requests in progress at a listener. Raises EnvoyAway."""
        name = f"http.{listener}.downstream_rq_active"
        stats = await self._stats(rf"^http\.{listener}\.downstream_rq_active$")
        return int(stats.get(name, 0))

    async def metrics(self, families: str) -> str:
        """Return the metrics whose names match a pattern, in the text format of Prometheus.

        Raises EnvoyAway.
        """
        return await self._ask("GET", "/stats/prometheus", usedonly="", filter=families)

    async def ask_clients_to_leave(self) -> None:
        """End each connection after its next response. Raises EnvoyAway."""
        await self._ask("POST", "/healthcheck/fail")

    async def tell_connections_to_close(self) -> None:
        """Begin the drain: connections close after their next response, and the listeners still
        accept new connections. Raises EnvoyAway.
        """
        await self._ask("POST", "/drain_listeners", graceful="", skip_exit="")

    async def refuse_connections(self) -> None:
        """Close the listeners. Requests in progress go on. Raises EnvoyAway."""
        await self._ask("POST", "/drain_listeners")

    async def _stats(self, pattern: str) -> dict[str, str]:
        text = await self._ask("GET", "/stats", filter=pattern)
        lines = (line.partition(": ") for line in text.splitlines())
        return {name: value for name, _, value in lines}

    async def _ask(self, method: str, path: str, **query: str) -> str:
        try:
            async with self._session.request(method, path, params=query) as answer:
                return await answer.text(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EnvoyAway(str(error) or type(error).__name__) from error
