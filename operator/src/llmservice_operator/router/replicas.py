"""Finds the replicas of the service, and asks each of them again and again who it is."""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from llmservice_operator.api.router_messages import ListedReplica
from llmservice_operator.engine_metrics import EngineMetrics, NoReport, Silent, UsageReport
from llmservice_operator.names import API_PORT
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.router_settings import RouterSettings

logger = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[Iterable[str]]]

PERIOD_SECONDS: Final = 0.8
"""Time in seconds between two questions to a replica. Another pod that takes over an address is
noticed within 1 s, including the time for the answer."""

LEAST_PAUSE_SECONDS: Final = 0.1
"""Shortest time in seconds between two rounds, however many lists arrive."""

CONFIRMED_SECONDS: Final = 3.0
"""Age in seconds at which an answer no longer proves that the address belongs to the service."""

KNOWN_SECONDS: Final = 60.0
"""Time in seconds for which an address is still asked after DNS last named it, or its own answer
last confirmed it. DNS may fail, or name no address, while every replica is well."""

LOOKUP_PERIOD_SECONDS: Final = 2.0
LOOKUP_SECONDS: Final = 10.0
"""Longest wait, in seconds, for an answer of DNS."""
MOST_ADDRESSES: Final = 1000
"""Largest number of addresses that are asked."""

READY: Final = "ready"
"""Phase of a model server that accepts requests."""

ADAPTER_LOADED: Final = "loaded"
"""State of an adapter with which a model server answers requests."""


async def resolve(host: str) -> list[str]:
    """Return the addresses of a DNS name. Raises OSError without an answer."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


@dataclass
class _Candidate:
    """An address that may belong to a replica."""

    named_at: float
    """Time when DNS last named the address, or its own answer last confirmed it."""
    view: ReplicaView | None = None
    """The replica at this address; None while it is not confirmed."""
    confirmed_at: float = 0.0
    is_asked: bool = False
    """Whether an answer is awaited."""
    is_nameless: bool = False
    """Whether a model server answers that does not say which service it belongs to."""
    uid: str = ""
    """UID of the pod that answered last."""
    ending_uid: str = ""
    """UID of a pod that must get no further requests, according to a metrics server."""


class Replicas:
    """The replicas that have confirmed that they belong to the service.

    DNS and the metrics servers only suggest addresses, because another pod may have taken over an
    address before they notice. An address counts while its own answer, which is at most
    `CONFIRMED_SECONDS` old, names the service.
    """

    def __init__(
        self,
        settings: RouterSettings,
        metrics: EngineMetrics,
        resolve: Resolve = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._resolve = resolve
        self._clock = clock
        self._candidates: dict[str, _Candidate] = {}
        self.changed = asyncio.Event()
        """Set when a replica was confirmed or lost, or began to drain. The reader clears it."""
        self.asked = asyncio.Event()
        """Set once the addresses of the first lookup have been asked."""
        self.ejections = 0
        """Number of times that an address was lost without a drain."""
        self._is_told = asyncio.Event()
        """Set when a metrics server has sent a list."""

    @property
    def candidates(self) -> int:
        """Number of addresses that are asked."""
        return len(self._candidates)

    @property
    def are_nameless(self) -> bool:
        """Whether no replica is confirmed, but a model server answers without naming its service.

        Model servers of an older release do not say which service they belong to.
        """
        return not self.views() and any(each.is_nameless for each in self._candidates.values())

    def learn(self, addresses: Iterable[str]) -> None:
        """Ask these addresses too, from the next round on."""
        now = self._clock()
        for address in addresses:
            known = self._candidates.get(address)
            if known is not None:
                known.named_at = now
            elif len(self._candidates) < MOST_ADDRESSES:
                self._candidates[address] = _Candidate(now)

    def tell(self, listed: Iterable[ListedReplica]) -> None:
        """Process the list of a metrics server. The next round begins at once.

        A replica that is being deleted gets no further request, even if the list is followed by an
        older one in which the replica is not being deleted.
        """
        listed = tuple(listed)
        self.learn(str(each.address) for each in listed)
        for each in listed:
            candidate = self._candidates.get(str(each.address))
            if candidate is None or not each.is_draining or candidate.ending_uid == each.uid:
                continue
            candidate.ending_uid = each.uid
            if candidate.view is not None and candidate.uid == each.uid:
                candidate.view = replace(candidate.view, is_draining=True)
                self.changed.set()
                logger.info("%s is being deleted", each.name)
        self._is_told.set()

    def views(self) -> tuple[ReplicaView, ...]:
        """Return the confirmed replicas, sorted by name. A pod with two addresses counts once."""
        since = self._clock() - CONFIRMED_SECONDS
        confirmed = {
            candidate.view.name: candidate.view
            for _, candidate in sorted(self._candidates.items(), reverse=True)
            if candidate.view is not None and candidate.confirmed_at > since
        }
        return tuple(confirmed[name] for name in sorted(confirmed))

    async def run(self) -> None:
        """Look up and ask the addresses for ever."""
        await self._look_up()
        await asyncio.gather(*self._round())
        self.asked.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_up_for_ever())
            while True:
                await self._pause()
                # A replica that answers slowly does not delay the questions to the others.
                for question in self._round():
                    tasks.create_task(question)

    async def _pause(self) -> None:
        """Wait for the next round, which a list of a metrics server makes earlier."""
        await asyncio.sleep(min(LEAST_PAUSE_SECONDS, PERIOD_SECONDS))
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_SECONDS - LEAST_PAUSE_SECONDS):
                await self._is_told.wait()
        self._is_told.clear()

    async def _look_up_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LOOKUP_PERIOD_SECONDS)
            await self._look_up()

    async def _look_up(self) -> None:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                addresses = await self._resolve(self._settings.replicas_host)
        except (OSError, TimeoutError) as error:
            logger.debug("DNS names no replica: %s", error)
        else:
            self.learn(addresses)

    def _round(self) -> list[Coroutine[Any, Any, None]]:
        """Return a question to each address that has no unanswered question.

        Addresses with a `named_at` that is older than KNOWN_SECONDS are forgotten.
        """
        since = self._clock() - KNOWN_SECONDS
        self._candidates = {
            address: each for address, each in self._candidates.items() if each.named_at > since
        }
        return [
            self._ask(address, each)
            for address, each in self._candidates.items()
            if not each.is_asked
        ]

    async def _ask(self, address: str, candidate: _Candidate) -> None:
        candidate.is_asked = True
        try:
            report = await self._metrics.report(address)
        except Silent:
            if candidate.confirmed_at > self._clock() - CONFIRMED_SECONDS:
                return
            view = None
        except NoReport:
            view, candidate.is_nameless = None, False
        else:
            candidate.uid = "" if report.replica is None else report.replica.uid
            view, candidate.is_nameless = self._view(address, report), report.replica is None
            if view is not None and candidate.uid == candidate.ending_uid:
                view = replace(view, is_draining=True)
        finally:
            candidate.is_asked = False
        self._note(address, candidate, view)

    def _note(self, address: str, candidate: _Candidate, view: ReplicaView | None) -> None:
        before, candidate.view = candidate.view, view
        if before is not None and view is None and not before.is_draining:
            self.ejections += 1
        if view is not None:
            candidate.named_at = candidate.confirmed_at = self._clock()
        if _role(before) != _role(view):
            self.changed.set()
            logger.info(
                "%s %s", address, "is no replica now" if view is None else f"is {view.name}"
            )

    def _view(self, address: str, report: UsageReport) -> ReplicaView | None:
        """Return the replica that answered; None for another pod, and before it is ready."""
        settings, pod = self._settings, report.replica
        if pod is None or (pod.namespace, pod.service) != (settings.namespace, settings.service):
            return None
        if not report.draining and report.phase != READY:
            return None
        return ReplicaView(
            name=pod.pod,
            address=f"[{address}]:{API_PORT}" if ":" in address else f"{address}:{API_PORT}",
            is_draining=report.draining,
            report=report.snapshot(self._clock()),
            cache_tokens=report.kv_capacity_tokens,
            adapters=tuple(
                each.name for each in report.adapters or () if each.state == ADAPTER_LOADED
            ),
            key_tokens=None if settings.client_limits is None else report.tokens_by_key,
        )


def _role(view: ReplicaView | None) -> tuple[str, bool] | None:
    return None if view is None else (view.name, view.is_draining)
