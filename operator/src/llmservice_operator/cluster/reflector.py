"""The reflector lists the objects of some kinds into a cache, and keeps the cache equal to the
cluster.

Each process has one reflector. It loads the cache, watches, and audits the cache against the
cluster. It starts again when the watches end or when the set of served kinds changes.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.audit import Audit, say_trouble
from llmservice_operator.cluster.cache import Cache, Key
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.cluster.served import DISCOVERY_PERIOD_SECONDS, ServedKinds
from llmservice_operator.cluster.watch_session import OnTrouble
from llmservice_operator.cluster.watching import DELETED, LISTED, OnEvent, watch
from llmservice_operator.errors import ClusterError, Forbidden, NotServed
from llmservice_operator.kinds import LLMSERVICES, Kind, kind_of

logger = logging.getLogger(__name__)

RESTART_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
HEALTHY_AFTER_SECONDS = 60.0
"""Time in seconds after which watches are considered healthy. If they break later, the backoff
starts again at its first delay."""
WAIT_FOR_CLUSTER_SECONDS = 5.0
PATIENT_ATTEMPTS = 3
"""Number of times that a partly failed load is repeated. After that, the process works with the
objects that were loaded."""
LONGEST_RETRY_SECONDS = 300.0
"""Longest pause in seconds between two attempts at the lists that failed."""
TROUBLES_TOLD = 5
"""Maximum number of problems that a message names. The message gives only the number of the
others."""
AUDIT_GRACE_SECONDS = 5.0
"""Time in seconds that an event may take to arrive before the audit considers the event lost."""

_REMEDIES = {
    LLMSERVICES.kind: "apply crds/llmservice.yaml or install the chart with crds.install=true"
}
"""What to do if the cluster does not serve a required kind. Only kinds that are not part of
Kubernetes have an entry."""


class ReflectorObserver(Protocol):
    """Counts the events of the reflector. Telemetry implements this protocol. `plural` is the
    plural of a kind.
    """

    def watch_event(self, plural: str) -> None: ...

    def watches_restarted(self) -> None: ...

    def cache_diverged(self, plural: str) -> None:
        """Count an object that the watches missed."""


class Watcher(Protocol):
    """Delivers events until `stop` is set. `watching.watch` implements this protocol."""

    async def __call__(
        self,
        kinds: Sequence[Kind],
        namespaces: Sequence[str | None],
        on_event: OnEvent,
        stop: asyncio.Event,
        on_trouble: OnTrouble,
    ) -> None: ...


class Reflector:
    def __init__(
        self,
        cluster: Cluster,
        served: ServedKinds,
        cache: Cache,
        namespaces: Sequence[str | None],
        enqueue: Callable[[Key], None],
        observer: ReflectorObserver,
        on_problem: Callable[[str | None], None],
        audit_period_seconds: float,
        watcher: Watcher = watch,
        on_hindrance: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """`enqueue` is called with the LLMService of every object that changed, appeared or
        vanished.

        `on_problem` is called with a message that says why the cache may be out of date and what to
        do, and with None once there is no such problem. `on_hindrance` is called with a message
        about the kinds and namespaces that are not watched, and with None if there are none. The
        namespace None means all namespaces.
        """
        self.loaded = asyncio.Event()
        """Set once the cache is loaded. Before that, every object looks deleted."""
        self._served = served
        self._cache = cache
        self._namespaces = namespaces
        self._enqueue = enqueue
        self._observer = observer
        self._on_problem = on_problem
        self._audit_period = audit_period_seconds
        self._watcher = watcher
        self._on_hindrance = on_hindrance
        self._patience = PATIENT_ATTEMPTS
        self._blocked: str | None = None
        self._unwatched: dict[str, str] = {}
        """Reasons why watches are refused, by the URL path of the watch."""
        self._audit = Audit(cluster, cache, served, namespaces, enqueue, observer.cache_diverged)
        self._stop_watching = asyncio.Event()
        self._kinds_changed = False
        self._listed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Load the cache and watch until `stop` is set; start again whenever the watches end."""
        failures = 0
        clock = asyncio.get_running_loop()
        while not stop.is_set():
            if not await self._load():
                await _wait(stop, WAIT_FOR_CLUSTER_SECONDS)
                continue
            started = clock.time()
            await self._watch(stop)
            if stop.is_set():
                return
            if self._kinds_changed:
                continue
            self._on_problem("the watches have stopped and are being restarted")
            self._observer.watches_restarted()
            was_healthy = clock.time() - started > HEALTHY_AFTER_SECONDS
            failures = 1 if was_healthy else failures + 1
            last = len(RESTART_BACKOFF_SECONDS) - 1
            await _wait(stop, RESTART_BACKOFF_SECONDS[min(failures - 1, last)])

    async def audit(self) -> None:
        """Compare the cache with the cluster for ever; restart watches that repeatedly miss
        events.
        """
        period = self._audit_period
        repaired_before = 0
        await self.loaded.wait()
        while True:
            # After a watch was down, its objects are listed again. The list does not show which
            # objects were deleted meanwhile, so the next audit starts early.
            was_listed = await _wait(self._listed, period * random.uniform(0.8, 1.2))
            if was_listed:
                await asyncio.sleep(min(AUDIT_GRACE_SECONDS, period))
                self._listed.clear()
            try:
                suspects = await self._audit.suspects()
                repaired = 0
                if suspects:
                    await asyncio.sleep(min(AUDIT_GRACE_SECONDS, period))
                    repaired = await self._audit.repair(suspects)
            except NotServed as error:
                logger.error("%s any more", error)
                self._stop_watching.set()
            except ClusterError as error:
                logger.warning("the audit of the cache failed: %s", error)
            else:
                self._tell_troubles()
                if self._audit.went_back:
                    self._audit.went_back = False
                    logger.error("the cluster is in an earlier state than before; loading it anew")
                    self._stop_watching.set()
                elif repaired and repaired_before and not was_listed:
                    logger.error("the watches keep missing events and are restarted")
                    self._stop_watching.set()
                repaired_before = repaired

    async def discover(self) -> None:
        """Look for the optional kinds for ever, and repeat the lists that failed.

        Restart the watches when the set of served kinds changes.
        """
        await self.loaded.wait()
        clock = asyncio.get_running_loop()
        pause, retry_at = 0.0, 0.0
        while True:
            await asyncio.sleep(DISCOVERY_PERIOD_SECONDS)
            if self._audit.troubles and clock.time() >= retry_at:
                is_better = await self._retry()
                pause = 0.0 if is_better else min(2 * pause + 1, LONGEST_RETRY_SECONDS)
                retry_at = clock.time() + pause
            if await self._served.refresh():
                plurals = ", ".join(kind.plural for kind in self._served.watched)
                logger.info("other kinds are served now; watching %s", plurals)
                self._kinds_changed = True
                self._stop_watching.set()

    async def _load(self) -> bool:
        """Fill the cache. If that fails, report the reason and return False."""
        reason: str | None
        try:
            await self._audit.reload()
        except NotServed as error:
            remedy = _REMEDIES.get(error.kind, "the process cannot work without it")
            reason = f"{error}: {remedy}"
        except ClusterError as error:
            reason = _say_error(error)
        else:
            reason = self._why_not_to_begin()
        if reason is None:
            self._patience = PATIENT_ATTEMPTS
            self._blocked = self._why_blocked()
            self._on_problem(self._blocked)
            self._tell_troubles()
            self.loaded.set()
            return True
        self._on_problem(reason)
        logger.error("%s; trying again in %d s", reason, WAIT_FOR_CLUSTER_SECONDS)
        return False

    def _why_not_to_begin(self) -> str | None:
        """Return the reason why a partly loaded cache is not usable, or None if it is usable.

        The process waits for a temporary error to end, but not for ever, because an error about one
        kind in one namespace must not stop the work on all others.
        """
        troubles = self._audit.troubles
        services = [troubles.get((LLMSERVICES, namespace)) for namespace in self._namespaces]
        if LLMSERVICES in self._served and all(services):
            return _say_error(services[0])
        passing = [each for each in troubles.values() if not isinstance(each, Forbidden)]
        if passing and self._patience > 0:
            self._patience -= 1
            return _say_error(passing[0])
        return None

    def _why_blocked(self) -> str | None:
        """Return the error of a kind whose lists fail in all namespaces; None if there is no such
        kind.
        """
        for kind in self._served.watched:
            errors = [self._audit.troubles.get((kind, each)) for each in self._namespaces]
            if all(errors):
                return _say_error(errors[0])
        return None

    def _tell_troubles(self) -> None:
        """Report the kinds and namespaces that are not watched.

        If a kind is not watched in one namespace, the process reports a hindrance. If the lists of
        a kind fail in all namespaces, the process continues to work and is not ready.
        """
        if (blocked := self._why_blocked()) != self._blocked:
            self._blocked = blocked
            self._on_problem(blocked)
        said = [say_trouble(scope, error) for scope, error in self._audit.troubles.items()]
        said += self._unwatched.values()
        more = len(said) - TROUBLES_TOLD
        if more > 0:
            said = [*said[:TROUBLES_TOLD], f"and {more} more"]
        self._on_hindrance("; ".join(said) or None)

    async def _retry(self) -> bool:
        """Repeat the lists that failed; return whether some of them succeed now."""
        try:
            is_better = await self._audit.retry()
        except NotServed as error:
            logger.error("%s any more", error)
            self._stop_watching.set()
            return False
        self._tell_troubles()
        return is_better

    async def _watch(self, stop: asyncio.Event) -> None:
        self._stop_watching = asyncio.Event()
        self._kinds_changed = False
        self._unwatched = {}
        stopping = asyncio.create_task(_forward(stop, self._stop_watching))
        try:
            await self._watcher(
                self._served.watched,
                self._namespaces,
                self._note,
                self._stop_watching,
                self._note_trouble,
            )
        except Exception:
            logger.exception("the watches broke")
        finally:
            stopping.cancel()

    def _note_trouble(self, path: str, problem: str | None) -> None:
        if problem is None:
            self._unwatched.pop(path, None)
        else:
            self._unwatched[path] = f"nothing can be watched at {path}: {problem}"
        self._tell_troubles()

    def _note(self, type_: str, manifest: Manifest) -> None:
        self._observer.watch_event(kind_of(manifest).plural)
        if type_ == LISTED:
            self._listed.set()
        for owner in self._cache.take(manifest, is_deleted=type_ == DELETED) or ():
            self._enqueue(owner)


def _say_error(error: ClusterError | None) -> str:
    if isinstance(error, Forbidden):
        return f"a right is missing, grant it to the operator's service account: {error}"
    return f"the cluster cannot be read: {error}"


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event, at most this number of seconds; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def _forward(source: asyncio.Event, target: asyncio.Event) -> None:
    await source.wait()
    target.set()
