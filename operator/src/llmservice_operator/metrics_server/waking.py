"""Notices at once when a router holds a request for a service without replicas.

One question waits in each router pod of such a service until the pod holds a request. An idle
service therefore costs almost nothing. The metrics servers that watch other services say which of
these must be woken.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import Final, NamedTuple

from aiohttp import web

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import RouterReport
from llmservice_operator.api.wake import Wake
from llmservice_operator.cluster import Key
from llmservice_operator.metrics_server.peers import WAKES
from llmservice_operator.metrics_server.rest import may_wake
from llmservice_operator.scaling.idleness import held_percent

logger = logging.getLogger(__name__)

WATCH_SECONDS: Final = 600.0
"""Longest time in seconds for which a question waits in a router pod."""
AGAIN_SECONDS: Final = 1.0
"""Time in seconds between two questions to a router pod that holds requests."""
PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses in seconds after questions that a router pod did not answer. The last one is repeated."""
SEARCH_SECONDS: Final = 10.0
"""Longest time in seconds from a change that nobody notes, such as one of a router pod, to the next
search for router pods."""
GATHER_SECONDS: Final = 0.5
"""Time in seconds for which changes are gathered before a search."""
REPORTED_SECONDS: Final = 10.0
"""Time in seconds for which the held requests in a report of an old router count. The router is
asked every five seconds."""
LONGEST_WAIT_SECONDS: Final = 60.0
"""Longest time in seconds for which an operator may wait for a service that must be woken."""

Ask = Callable[[str, float], Awaitable[int | None]]
"""Asks the router pod at an address for its held requests. The answer comes when there is one, or
after a number of seconds. None without an answer."""


class _Pod(NamedTuple):
    """A router pod of a service without replicas, from one start of its container to the next."""

    key: Key
    uid: str
    restarts: int
    address: str


class Waking:
    """Watches the routers of all services without replicas."""

    def __init__(
        self,
        services: Callable[[], Iterable[Manifest]],
        pods: Callable[[], Iterable[Manifest]],
        ask: Ask,
        held_percent: Callable[[Key, int], float],
        pauses: tuple[float, ...] = PAUSES,
        keeps: Callable[[Key], bool] = lambda _: True,
        changes: Callable[[], int] | None = None,
    ) -> None:
        """`held_percent` returns the demand of held requests, in percent of one replica. `keeps`
        returns whether this metrics server watches a service. `changes` returns how often a
        service, a pod, or the answer of `keeps`, has changed so far; without it, any of them may
        have changed at any time.
        """
        self._services = services
        self._pods = pods
        self._ask = ask
        self._held_percent = held_percent
        self._pauses = pauses
        self._keeps = keeps
        self._changes = changes or count().__next__
        self._watches: dict[_Pod, asyncio.Task[None]] = {}
        self._held: defaultdict[Key, dict[_Pod, int]] = defaultdict(dict)
        """Requests that wait in the router pods of each service that must be woken."""
        self._reported: dict[Key, tuple[float, int]] = {}
        """Time of the last report in which an old router of a service at rest held requests, and
        their number."""
        self._elsewhere: dict[str, Mapping[Key, Wake]] = {}
        """Wakes that other metrics servers know, by their names."""
        self._resting: set[Key] = set()
        self._is_changed = asyncio.Event()
        self._news = asyncio.Condition()
        self._ends = False

    @property
    def watched(self) -> int:
        """Number of router pods in which a question waits."""
        return len(self._watches)

    def rests(self, key: Key) -> bool:
        """Return whether a service has no replicas until its next request."""
        return key in self._resting

    def note(self) -> None:
        """Note that a service or a pod has changed."""
        self._is_changed.set()

    def wakes(self, *, own: bool = False) -> dict[Key, Wake]:
        """Return the services that must be woken now; with `own`, only those of this process."""
        since = asyncio.get_running_loop().time() - REPORTED_SECONDS
        self._reported = {
            key: each
            for key, each in self._reported.items()
            if each[0] >= since and self.rests(key)
        }
        held = {key: number for key, (_, number) in self._reported.items()}
        held |= {key: sum(pods.values()) for key, pods in self._held.items()}
        found = {key: self._wake(key, number) for key, number in held.items()}
        if own:
            return found
        return {key: it for wakes in self._elsewhere.values() for key, it in wakes.items()} | found

    async def heed(self, key: Key, report: RouterReport) -> None:
        """Wake a service at rest whose router holds requests, and is too old for a question that
        waits.
        """
        if report.can_be_watched or not report.held_requests or not self.rests(key):
            return
        self._reported[key] = asyncio.get_running_loop().time(), report.held_requests
        async with self._news:
            self._news.notify_all()

    def _wake(self, key: Key, held: int) -> Wake:
        try:
            return Wake(held_requests=held, held_percent=self._held_percent(key, held))
        except (ArithmeticError, ValueError):
            # An impossible number about one service must not keep it, or any other, asleep.
            logger.exception("%s/%s: the demand of its held requests makes no sense", *key)
            return Wake(held_requests=held, held_percent=held_percent(held, None, 0.0))

    async def next_wakes(self, seconds: float, *, own: bool = False) -> Mapping[Key, Wake]:
        """Return the services that must be woken, as soon as there is one.

        Without one, the result after this number of seconds is empty.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(
                    lambda: (
                        self._held or self._reported or (self._elsewhere and not own) or self._ends
                    )
                )
        return self.wakes(own=own)

    async def learn(self, member: str, wakes: Mapping[Key, Wake]) -> None:
        """Take the services that must be woken according to another metrics server."""
        self._elsewhere.pop(member, None)
        if wakes:
            self._elsewhere[member] = wakes
            async with self._news:
                self._news.notify_all()

    async def end(self) -> None:
        """Let all callers of `next_wakes` return now."""
        self._ends = True
        async with self._news:
            self._news.notify_all()

    async def run(self) -> None:
        """Watch for ever."""
        searched = -1
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._is_changed.clear()
                if (changes := self._changes()) != searched:
                    self._search(tasks)
                    searched = changes
                await asyncio.sleep(GATHER_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(SEARCH_SECONDS):
                        await self._is_changed.wait()

    def _search(self, tasks: asyncio.TaskGroup) -> None:
        """Begin to watch the router pods of services without replicas, and leave all others."""
        found = set(self._find())
        for gone in self._watches.keys() - found:
            self._watches.pop(gone).cancel()
            self._forget(gone)
        for new in found - self._watches.keys():
            self._watches[new] = tasks.create_task(self._watch(new))

    def _find(self) -> Iterable[_Pod]:
        resting = self._resting = {
            (it["metadata"]["namespace"], it["metadata"]["name"])
            for it in self._services()
            if self._keeps((it["metadata"]["namespace"], it["metadata"]["name"])) and may_wake(it)
        }
        pods = list(self._pods()) if resting else []
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"] and not _is_over(pod):
                resting.discard(_key(pod, names.SERVICE_LABEL))
        for pod in pods:
            metadata, status = pod["metadata"], pod.get("status", {})
            key = _key(pod, names.ROUTER_LABEL)
            if key in resting and status.get("podIP") and status.get("phase") == "Running":
                containers = status.get("containerStatuses", ())
                restarts = sum(each.get("restartCount", 0) for each in containers)
                yield _Pod(key, metadata["uid"], restarts, status["podIP"])

    async def _watch(self, pod: _Pod) -> None:
        failures, clock = 0, asyncio.get_running_loop()
        while True:
            began = clock.time()
            held = await self._ask(pod.address, WATCH_SECONDS)
            if held:
                self._held[pod.key][pod] = held
                async with self._news:
                    self._news.notify_all()
                await asyncio.sleep(AGAIN_SECONDS)
                self._forget(pod)
            elif held is None or clock.time() - began < WATCH_SECONDS / 2:
                await asyncio.sleep(self._pauses[min(failures, len(self._pauses) - 1)])
                failures += 1
                continue
            failures = 0

    def _forget(self, pod: _Pod) -> None:
        self._held[pod.key].pop(pod, None)
        if not self._held[pod.key]:
            del self._held[pod.key]


def _key(pod: Manifest, label: str) -> Key:
    metadata = pod["metadata"]
    return metadata["namespace"], (metadata.get("labels") or {}).get(label, "")


def _is_over(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def add_wakes(app: web.Application, waking: Waking) -> None:
    """Add the route at which operators wait for services that must be woken."""

    async def wakes(request: web.Request) -> web.Response:
        try:
            seconds = min(float(request.query.get("wait", "0")), LONGEST_WAIT_SECONDS)
        except ValueError:
            message = f"wait must be a number of seconds: {names.WAKES_PATH}?wait=30"
            return web.json_response({"message": message}, status=400)
        found = await waking.next_wakes(seconds, own=request.query.get("own") == "true")
        body = WAKES.dump_json(
            {f"{namespace}/{name}": it for (namespace, name), it in found.items()}, by_alias=True
        )
        return web.Response(body=body, content_type="application/json")

    async def end(_: web.Application) -> None:
        await waking.end()

    app.router.add_get(names.WAKES_PATH, wakes)
    app.on_shutdown.append(end)
