"""Sends each router pod the replicas of its service, again after every change.

Each router pod has at most one request in progress, so a slow router delays neither the other
routers nor the rounds. A router that does not accept a list gets it again, after longer and longer
pauses. After the last pause, it gets a list only when the list or its own pod changes.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.replica_list import MOST_REPLICAS, ListedReplica, ReplicaList
from llmservice_operator.cluster import Key
from llmservice_operator.workload import Replica, replicas_of

logger = logging.getLogger(__name__)

SEARCH_SECONDS: Final = 1.0
"""Time in seconds between two searches for router pods."""
GATHER_SECONDS: Final = 0.02
"""Time in seconds for which changes are gathered, so that a rollout does not cause a list for each
event."""
PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)
"""Pauses in seconds between two attempts to send a list. Together they are longer than the time for
which DNS hides a new metrics server from the routers."""
TIMEOUT_SECONDS: Final = 2.0
CONNECTIONS: Final = 100

Send = Callable[[str, ReplicaList], Awaitable[bool]]
"""Sends a list to a router pod at an address. Returns whether the router has accepted the list."""


@dataclass
class _Router:
    """A router pod, from one start of its container to the next."""

    address: str
    wanted: ReplicaList
    accepted: ReplicaList | None = None
    """The last list that the router has accepted."""
    sending: asyncio.Task[None] | None = None

    @property
    def is_informed(self) -> bool:
        return self.accepted == self.wanted


class RouterUpdates:
    """Keeps the router pods of all services informed."""

    def __init__(
        self,
        pods_of: Callable[[Key], Iterable[Manifest]],
        pods: Callable[[], Iterable[Manifest]],
        send: Send,
        pauses: tuple[float, ...] = PAUSES,
    ) -> None:
        """`pods_of` returns the pods of the replicas of a service, and `pods` returns all pods."""
        self._pods_of = pods_of
        self._pods = pods
        self._send = send
        self._pauses = pauses
        self._routers: defaultdict[Key, dict[tuple[str, int], _Router]] = defaultdict(dict)
        """Router pods of each service, by the pod's UID and the restarts of its container."""
        self._changed: set[Key] = set()
        self._is_changed = asyncio.Event()

    def note(self, key: Key) -> None:
        """Note that an object of a service has changed."""
        self._changed.add(key)
        self._is_changed.set()

    async def run(self) -> None:
        """Inform the routers for ever."""
        clock = asyncio.get_running_loop()
        search_at = clock.time()
        async with asyncio.TaskGroup() as tasks:
            while True:
                if clock.time() >= search_at:
                    self._search()
                    search_at = clock.time() + SEARCH_SECONDS
                changed, self._changed = self._changed, set()
                self._is_changed.clear()
                for key in changed & self._routers.keys():
                    self._inform(key, tasks)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(search_at):
                        await self._is_changed.wait()
                await asyncio.sleep(GATHER_SECONDS)

    def _search(self) -> None:
        """Find the router pods that exist now."""
        found: defaultdict[Key, dict[tuple[str, int], str]] = defaultdict(dict)
        for pod in self._pods():
            metadata, status = pod["metadata"], pod.get("status", {})
            name = (metadata.get("labels") or {}).get(names.ROUTER_LABEL)
            if name and status.get("podIP") and status.get("phase") == "Running":
                containers = status.get("containerStatuses", ())
                restarts = sum(each.get("restartCount", 0) for each in containers)
                found[metadata["namespace"], name][metadata["uid"], restarts] = status["podIP"]
        for key in self._routers.keys() | found.keys():
            known, now = self._routers[key], found[key]
            for gone in known.keys() - now.keys():
                if (sending := known.pop(gone).sending) is not None:
                    sending.cancel()
            for new in now.keys() - known.keys():
                known[new] = _Router(now[new], self._list(key))
                self._changed.add(key)
            if not known:
                del self._routers[key]

    def _inform(self, key: Key, tasks: asyncio.TaskGroup) -> None:
        wanted = self._list(key)
        for router in self._routers[key].values():
            router.wanted = wanted
            if not router.is_informed and (router.sending is None or router.sending.done()):
                router.sending = tasks.create_task(self._deliver(router))

    def _list(self, key: Key) -> ReplicaList:
        namespace, service = key
        replicas = sorted(replicas_of(self._pods_of(key)), key=lambda each: each.name)
        listed = tuple(found for each in replicas if (found := _listed(each)) is not None)
        return ReplicaList(namespace=namespace, service=service, replicas=listed[:MOST_REPLICAS])

    async def _deliver(self, router: _Router) -> None:
        failures = 0
        while not router.is_informed:
            wanted = router.wanted
            if await self._send(router.address, wanted):
                router.accepted, failures = wanted, 0
                continue
            if failures == len(self._pauses):
                logger.warning(
                    "the router pod at %s of %s/%s takes no list of replicas; its own search is "
                    "slower. Look at its log, and for a NetworkPolicy that blocks port %d",
                    router.address,
                    wanted.namespace,
                    wanted.service,
                    names.MANAGEMENT_PORT,
                )
                return
            await asyncio.sleep(self._pauses[failures])
            failures = failures + 1 if router.wanted == wanted else 0


def _listed(replica: Replica) -> ListedReplica | None:
    """Return the entry of a replica; None if its pod has no valid address."""
    try:
        return ListedReplica.model_validate(
            {
                "name": replica.name,
                "uid": replica.server["metadata"]["uid"],
                "address": replica.address,
                "is_ready": replica.serves,
                "is_draining": replica.is_leaving,
            }
        )
    except ValidationError:
        return None


class RouterClient:
    """HTTP client of the router pods. The caller must close it."""

    def __init__(self, port: int = names.MANAGEMENT_PORT) -> None:
        self._port = port
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(self, address: str, listed: ReplicaList) -> bool:
        """Send a list to the router pod at an address. Return whether it has accepted the list."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.put(
                f"http://{host}:{self._port}{names.ROUTER_REPLICAS_PATH}",
                data=listed.model_dump_json(by_alias=True),
                headers={"content-type": "application/json"},
                allow_redirects=False,
            ) as answer:
                accepted = answer.status == 204
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            logger.debug("the router pod at %s does not answer: %s", address, error)
            return False
        if not accepted:
            logger.debug("the router pod at %s refuses a list: %d", address, answer.status)
        return accepted
