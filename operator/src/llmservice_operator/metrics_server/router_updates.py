"""Sends each router pod the replicas of its service after every change, and reads its report.

Each answer of a router contains its report. Every round therefore sends the list again, at the time
when it asks the replicas: a request that leaves the router between two reports is then in the
report of exactly one of both.

Each router pod has at most one request in progress, so a slow router does not delay the other
routers. A router that does not accept a list gets it again, after longer and longer pauses, and no
round waits for it.
"""

import asyncio
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import aiohttp
from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import (
    MOST_REPLICAS,
    ListedReplica,
    ReplicaList,
    RouterReport,
)
from llmservice_operator.cluster import Key
from llmservice_operator.metrics_server.rest import Refusal
from llmservice_operator.metrics_server.turns import FairTurns
from llmservice_operator.scaling.signals import HoldCounters, RouterPod, RouterSnapshot
from llmservice_operator.workload import Replica, replicas_of

logger = logging.getLogger(__name__)

SEARCH_SECONDS: Final = 1.0
"""Time in seconds between two looks at the router pods. They are searched again only after a change
of a pod."""
GATHER_SECONDS: Final = 0.02
"""Time in seconds for which changes are gathered, so that a rollout does not cause a list for each
event."""
PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses in seconds between two attempts to send a list. The last one is repeated, until a router
accepts the list."""
ROUND_SECONDS: Final = 2.0
"""Longest time in seconds for which a round waits for the reports of the routers."""
TIMEOUT_SECONDS: Final = 3.0
MOST_WATCHES: Final = 20_000
"""Largest number of connections on which a router pod is asked for its next held request."""
PROBE_SECONDS: Final = 60
"""Time in seconds of silence after which the kernel probes a connection on which a question waits.
Some networks forget a silent connection after six minutes, and would drop the answer."""
PROBE_AGAIN_SECONDS: Final = 10
LOST_PROBES: Final = 3
"""Number of consecutive probes without an answer after which such a connection is closed."""
LONGEST_REPORT: Final = 64 * 1024
"""Longest report that is read, in bytes. A pod may run any program."""

Send = Callable[[str, ReplicaList], Awaitable[RouterReport | None]]
"""Sends a list to a router pod at an address. Returns the report of the router, or None if it has
not accepted the list."""

OnReport = Callable[[Key, RouterReport], Awaitable[None]]
"""Called with the service and the report of one of its router pods."""


@dataclass
class _Router:
    """A router pod, from one start of its container to the next."""

    address: str
    wanted: ReplicaList
    is_due: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the list differs from the one that was sent last, or when a round needs a report."""
    informing: asyncio.Task[None] | None = None
    answers: bool = True
    """Whether the router has accepted the last list. Also true before the first one."""
    can_be_watched: bool = True
    """Whether a question for the next held request can wait in the router. Also true before the
    first report."""
    asked: asyncio.Future[RouterSnapshot | None] | None = None
    """Result of the next request to the router, if a round needs it."""

    def ask(self) -> asyncio.Future[RouterSnapshot | None]:
        """Ask for a report that is not older than this call."""
        if self.asked is None:
            self.asked = asyncio.get_running_loop().create_future()
            self.is_due.set()
        return self.asked


class RouterUpdates:
    """Keeps the router pods of all services informed."""

    def __init__(
        self,
        pods_of: Callable[[Key], Iterable[Manifest]],
        pods: Callable[[], Iterable[Manifest]],
        pod_changes: Callable[[], int],
        send: Send,
        on_report: OnReport,
        pauses: tuple[float, ...] = PAUSES,
        now: Callable[[], float] = time.time,
        refusal_of: Callable[[Key], Refusal | None] = lambda _: None,
        rests: Callable[[Key], bool] = lambda _: False,
        keeps: Callable[[Key], bool] = lambda _: True,
    ) -> None:
        """`pods_of` returns the pods of the replicas of a service, and `pods` returns all pods.
        `pod_changes` returns how often a pod, or the answer of `keeps`, has changed so far.

        `now` returns the Unix time in seconds. `refusal_of` returns why a service will have no
        replica; None if it may have one. `rests` returns whether a service has no replicas because
        nobody uses it. `keeps` returns whether this metrics server watches a service.
        """
        self._pods_of = pods_of
        self._pods = pods
        self._pod_changes = pod_changes
        self._send = send
        self._on_report = on_report
        self._pauses = pauses
        self._now = now
        self._refusal_of = refusal_of
        self._rests = rests
        self._keeps = keeps
        self._turns = FairTurns()
        self._routers: defaultdict[Key, dict[tuple[str, int], _Router]] = defaultdict(dict)
        """Router pods of each service, by the pod's UID and the restarts of its container."""
        self._refused_at: dict[Key, float] = {}
        """Services with router pods whose requests will be refused, unless an object changes
        before. The values are the Unix times in seconds."""
        self._changed: set[Key] = set()
        self._is_changed = asyncio.Event()

    async def ask(self) -> Mapping[Key, tuple[RouterPod, ...]]:
        """Ask the routers of all services for a report now, and return all router pods.

        A router that did not answer the last time is asked after its pause, and not by this call.
        The routers of services that rest are left out, because other questions wait in them, unless
        a router is too old for such a question.
        """
        routers = [
            (key, f"{uid}/{restarts}", router.ask() if router.answers else None)
            for key, of_service in self._routers.items()
            for (uid, restarts), router in of_service.items()
            if not (router.can_be_watched and self._rests(key))
        ]
        asked = [each for _, _, each in routers if each is not None]
        if asked:
            await asyncio.wait(asked, timeout=ROUND_SECONDS)
        found: defaultdict[Key, tuple[RouterPod, ...]] = defaultdict(tuple)
        for key, name, each in routers:
            is_known = each is not None and each.done() and not each.cancelled()
            found[key] += (RouterPod(name, each.result() if is_known and each else None),)
        return found

    def note(self, key: Key) -> None:
        """Note that an object of a service has changed."""
        self._changed.add(key)
        self._is_changed.set()

    async def run(self) -> None:
        """Inform the routers for ever."""
        clock = asyncio.get_running_loop()
        search_at, searched = clock.time(), -1
        async with asyncio.TaskGroup() as tasks:
            while True:
                if clock.time() >= search_at:
                    if (changes := self._pod_changes()) != searched:
                        self._search(tasks)
                        searched = changes
                    self._inform_late()
                    search_at = clock.time() + SEARCH_SECONDS
                changed, self._changed = self._changed, set()
                self._is_changed.clear()
                for key in changed & self._routers.keys():
                    self._inform(key)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(search_at):
                        await self._is_changed.wait()
                await asyncio.sleep(GATHER_SECONDS)

    def _search(self, tasks: asyncio.TaskGroup) -> None:
        """Find the router pods that exist now."""
        found: defaultdict[Key, dict[tuple[str, int], str]] = defaultdict(dict)
        for pod in self._pods():
            metadata, status = pod["metadata"], pod.get("status", {})
            name = (metadata.get("labels") or {}).get(names.ROUTER_LABEL)
            if name and status.get("podIP") and status.get("phase") == "Running":
                containers = status.get("containerStatuses", ())
                restarts = sum(each.get("restartCount", 0) for each in containers)
                key = metadata["namespace"], name
                if self._keeps(key):
                    found[key][metadata["uid"], restarts] = status["podIP"]
        for key in self._routers.keys() | found.keys():
            known, now = self._routers[key], found[key]
            for gone in known.keys() - now.keys():
                router = known.pop(gone)
                if router.informing is not None:
                    router.informing.cancel()
                if router.asked is not None:
                    router.asked.cancel()
            for new in now.keys() - known.keys():
                router = known[new] = _Router(now[new], self._list(key))
                router.informing = tasks.create_task(self._keep_informed(key, router))
            if not known:
                del self._routers[key]
                self._refused_at.pop(key, None)

    def _inform_late(self) -> None:
        """Inform the routers of the services whose requests are refused from now on. Only the time
        changes this, so there is no event.
        """
        now = self._now()
        for key in [key for key, at in self._refused_at.items() if at <= now]:
            self._inform(key)

    def _inform(self, key: Key) -> None:
        wanted = self._list(key)
        for router in self._routers[key].values():
            if router.wanted != wanted:
                router.wanted = wanted
                router.is_due.set()

    def _list(self, key: Key) -> ReplicaList:
        namespace, service = key
        replicas = sorted(replicas_of(self._pods_of(key)), key=lambda each: each.name)
        listed = tuple(found for each in replicas if (found := _listed(each)) is not None)
        refusal = None if any(it.serves for it in replicas) else self._refusal_of(key)
        self._refused_at.pop(key, None)
        if refusal is not None and refusal.begins > self._now():
            self._refused_at[key] = refusal.begins
            refusal = None
        return ReplicaList(
            namespace=namespace,
            service=service,
            replicas=listed[:MOST_REPLICAS],
            refusal=None if refusal is None else refusal.why,
        )

    async def _keep_informed(self, key: Key, router: _Router) -> None:
        failures = 0
        while True:
            router.is_due.clear()
            asked, router.asked = router.asked, None
            async with self._turns.turn(key[0], answers=router.answers):
                report = await self._send(router.address, router.wanted)
            router.answers = report is not None
            if asked is not None and not asked.done():
                asked.set_result(self._snapshot(report))
            pause: float | None = None
            if report is not None:
                failures = 0
                router.can_be_watched = report.can_be_watched
                await self._on_report(key, report)
            else:
                pause = self._pauses[min(failures, len(self._pauses) - 1)]
                failures += 1
            if failures == len(self._pauses):
                logger.warning(
                    "the router pod at %s of %s/%s takes no list of replicas; its own search is "
                    "slower. Look at its log, and for a NetworkPolicy that blocks port %d",
                    router.address,
                    *key,
                    names.MANAGEMENT_PORT,
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await router.is_due.wait()

    def _snapshot(self, report: RouterReport | None) -> RouterSnapshot | None:
        if report is None:
            return None
        at, held, counts = self._now(), report.held_requests, report.hold_counts
        watched = report.can_be_watched
        if counts is None:
            return RouterSnapshot(at, held, can_be_watched=watched)
        counters = HoldCounters(**counts.model_dump(exclude={"started"}))
        return RouterSnapshot(at, held, counts.started, counters, watched)


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
        # A wait for a connection would count as silence. The callers bound the requests.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._watches = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MOST_WATCHES, socket_factory=_probed_socket)
        )

    async def close(self) -> None:
        await self._session.close()
        await self._watches.close()

    async def send(self, address: str, listed: ReplicaList) -> RouterReport | None:
        """Send a list to the router pod at an address. Return the router's report, or None if the
        router has not accepted the list.
        """
        body = listed.model_dump_json(by_alias=True)
        return await self._ask(self._session, "PUT", address, names.ROUTER_REPLICAS_PATH, body)

    async def next_held(self, address: str, seconds: float) -> int | None:
        """Return the number of requests that the router pod at an address holds, as soon as it
        holds one.

        After this number of seconds, the result is 0. It is None without an answer.
        """
        path = f"{names.ROUTER_HELD_PATH}?wait={seconds:g}"
        found = await self._ask(self._watches, "GET", address, path, None, seconds)
        return None if found is None else found.held_requests

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        method: str,
        address: str,
        path: str,
        body: str | None,
        seconds: float = 0.0,
    ) -> RouterReport | None:
        """Send a request that the router answers within `seconds`. None without a valid report."""
        try:
            host = f"[{address}]" if ip_address(address).version == 6 else address
            async with session.request(
                method,
                f"http://{host}:{self._port}{path}",
                data=body,
                headers={"content-type": "application/json"},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=seconds + TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS
                ),
            ) as answer:
                if answer.status != HTTPStatus.OK:
                    logger.debug("the router pod at %s refuses: %d", address, answer.status)
                    return None
                report = b""
                async for chunk in answer.content.iter_any():
                    report += chunk
                    if len(report) > LONGEST_REPORT:
                        raise aiohttp.ClientPayloadError("the report is too long")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            logger.debug("the router pod at %s does not answer: %s", address, error)
            return None
        try:
            return RouterReport.model_validate_json(report)
        except ValidationError:
            logger.debug("the router pod at %s sends no valid report", address)
            return None


def _probed_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket for a connection that the kernel probes while it is silent."""
    family, kind, protocol, *_ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_AGAIN_SECONDS)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, LOST_PROBES)
    return made
