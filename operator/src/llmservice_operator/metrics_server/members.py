"""Finds the metrics servers of the release, from the EndpointSlices of their Service object."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cluster
from llmservice_operator.errors import ClusterError, Forbidden
from llmservice_operator.kinds import ENDPOINT_SLICES
from llmservice_operator.sharding import Shares

logger = logging.getLogger(__name__)

SEARCH_SECONDS: Final = 2.0
"""Time in seconds between two searches."""
PORT_NAME: Final = "scaling"
"""Name of the port at which the metrics servers answer each other."""
SERVICE_NAME_LABEL: Final = "kubernetes.io/service-name"
"""Label of Kubernetes with the Service object of an EndpointSlice."""


class Members:
    """The share of this metrics server, as of the last search.

    The shares stay while the API server does not answer.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        service_name: str,
        me: str,
        on_hindrance: Callable[[str | None], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`me` is the host and port at which this metrics server answers the others.

        `on_hindrance` is called with the reason why the others cannot be found, and with None when
        they are. `on_change` is called after the shares have changed.
        """
        self.shares = Shares(me)
        self.changes = 0
        """How often the shares have changed so far."""
        self.found = asyncio.Event()
        """Set after the first search that ended with a result."""
        self._cluster = cluster
        self._namespace = namespace
        self._selector = f"{SERVICE_NAME_LABEL}={service_name}"
        self._on_hindrance = on_hindrance
        self._on_change = on_change

    async def run(self) -> None:
        """Search for ever."""
        while True:
            await self.search()
            await asyncio.sleep(SEARCH_SECONDS)

    async def search(self) -> None:
        """Read the EndpointSlices once."""
        try:
            slices = [
                each
                async for each in self._cluster.list_all(
                    ENDPOINT_SLICES, self._namespace, selector=self._selector
                )
            ]
        except Forbidden as error:
            # Alone, this process measures every service, which is right for two metrics servers.
            self._on_hindrance(
                "the other metrics servers are not known, so this one measures all services; "
                f"grant the right to its service account: {error}"
            )
        except ClusterError as error:
            logger.warning("the metrics servers were not read: %s", error)
            return
        else:
            self._on_hindrance(None)
            self._share(dict(_endpoints(slices)))
        self.found.set()

    def _share(self, is_ready: Mapping[str, bool]) -> None:
        ready = frozenset(member for member, ready in is_ready.items() if ready)
        # At the first start none is Ready, and all have the same work to do.
        shares = Shares(self.shares.me, ready or frozenset({*is_ready, self.shares.me}))
        if shares != self.shares:
            logger.info("the metrics servers are now %s", ", ".join(sorted(shares.ready)))
            self.shares = shares
            self.changes += 1
            self._on_change()


def _endpoints(slices: list[Manifest]) -> Iterator[tuple[str, bool]]:
    """Yield each metrics server that is not about to end, and whether it is Ready.

    What makes no sense is left out.
    """
    for each in slices:
        ports = [it.get("port") for it in _dicts(each, "ports") if it.get("name") == PORT_NAME]
        for endpoint in _dicts(each, "endpoints"):
            addresses, conditions = endpoint.get("addresses"), endpoint.get("conditions")
            conditions = conditions if isinstance(conditions, dict) else {}
            if not ports or not addresses or conditions.get("terminating"):
                continue
            # According to the API, an unknown readiness means Ready.
            yield member_name(str(addresses[0]), ports[0]), conditions.get("ready") is not False


def _dicts(parent: Manifest, field: str) -> list[dict[str, Any]]:
    found = parent.get(field)
    return [it for it in found if isinstance(it, dict)] if isinstance(found, list) else []


def member_name(host: str, port: object) -> str:
    """Return the name of a metrics server, which is also the authority of its URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
