"""Delivers the events of watches by means of Kopf. This is the only module that imports Kopf.

Kopf expects a process of its own. Kopf handles the signals of the main thread, cancels every task
of its event loop that is younger than Kopf's own task, and keeps the process alive until Kopf has
ended. So Kopf runs in a thread with a separate event loop, where it cannot affect the rest of the
process. Kopf also misses deletions that happen while a watch is down, and the reflector repairs the
cache after them. One unexpected response ends all watches of Kopf, so `watch_session` filters such
responses out.
"""

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.client import UNCOMPRESSED, load_configuration
from llmservice_operator.cluster.watch_session import OnTrouble, StreamGuard, open_session
from llmservice_operator.kinds import Kind

LISTED = "LISTED"
"""Type of an event whose object was listed: at the start, and after a watch was lost."""
DELETED = "DELETED"

WATCHED_CHUNK = 50
"""Number of objects per page when Kopf lists. Kopf lists all kinds at the same time, and keeps
one page of each in memory."""
IDLE_SECONDS = 0.1
"""Time in seconds after which Kopf drops the task of an object without events. After a list, every
listed object has such a task."""

OnEvent = Callable[[str, Manifest], None]
"""Called with the type and the object of an event. Types other than LISTED and DELETED are
changes."""


async def watch(
    kinds: Sequence[Kind],
    namespaces: Sequence[str | None],
    on_event: OnEvent,
    stop: asyncio.Event,
    on_trouble: OnTrouble = lambda *_: None,
) -> None:
    """Call `on_event` in this event loop for every event, until `stop` is set.

    The namespace None means all namespaces. A watch whose connection is lost resumes automatically.
    If a watch cannot resume, `on_trouble` is called, also in this event loop. Raises the error that
    ended the watches. Returns early if the watches end without an error.
    """
    quieten()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def deliver(type_: str, manifest: Manifest) -> None:
        loop.call_soon_threadsafe(on_event, type_, manifest)

    def report(path: str, problem: str | None) -> None:
        loop.call_soon_threadsafe(on_trouble, path, problem)

    def finish(error: Exception | None) -> None:
        loop.call_soon_threadsafe(_settle, ended, error)

    registry = build_registry(kinds, deliver, StreamGuard(report))
    thread = _KopfThread(registry, build_settings(kinds), namespaces, finish)
    thread.start()
    stopping = asyncio.create_task(stop.wait(), name="stop of the watches")
    stopping.add_done_callback(lambda _: thread.end())
    try:
        await asyncio.shield(ended)
    finally:
        # This also runs on cancellation, because events must not arrive after this function has
        # returned.
        stopping.cancel()
        await asyncio.wait([ended])


class _KopfThread(threading.Thread):
    def __init__(
        self,
        registry: kopf.OperatorRegistry,
        settings: kopf.OperatorSettings,
        namespaces: Sequence[str | None],
        finish: Callable[[Exception | None], None],
    ) -> None:
        # The thread is a daemon, so that a stalled thread does not keep the process alive.
        super().__init__(name="watches", daemon=True)
        self._registry = registry
        self._settings = settings
        self._namespaces = [namespace for namespace in namespaces if namespace is not None]
        self._finish = finish
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def end(self) -> None:
        """Make Kopf stop. Any thread may call this method."""
        # A closed loop means that Kopf has ended already.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    def run(self) -> None:
        error: Exception | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._operate())
        except Exception as broken:
            error = broken
        finally:
            self._finish(error)

    async def _operate(self) -> None:
        await kopf.operator(
            registry=self._registry,
            settings=self._settings,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            stop_flag=self._stop,
            memories=NoMemories(),
        )


def build_registry(
    kinds: Sequence[Kind], deliver: OnEvent, guard: StreamGuard | None = None
) -> kopf.OperatorRegistry:
    """Return Kopf's registry with one event handler for all kinds."""
    registry = kopf.OperatorRegistry()
    guard = guard or StreamGuard(lambda *_: None)

    async def login(**_: Any) -> kopf.AiohttpSession:
        return await log_in(guard)

    kopf.on.login(registry=registry)(login)

    async def note(event: Any, **_: Any) -> None:
        deliver(event["type"] or LISTED, _taken_from(event["object"]))

    for kind in kinds:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(note)
    return registry


def _taken_from(body: kopf.RawBody) -> Manifest:
    """Return the object, and leave Kopf only its identity.

    The objects that Kopf makes from an event contain reference cycles. These cycles would keep the
    whole manifest in memory until the next full garbage collection, which is rare in a large
    process.
    """
    whole, kept = cast(Manifest, body), ("name", "namespace", "uid", "resourceVersion")
    taken = dict(whole)
    whole.clear()
    whole["metadata"] = {key: taken["metadata"][key] for key in kept if key in taken["metadata"]}
    return taken


def build_settings(kinds: Sequence[Kind]) -> kopf.OperatorSettings:
    """Return settings with which Kopf only watches."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # Without scanning, Kopf needs no right to watch namespaces and CRDs.
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1
    settings.watching.chunk_size = WATCHED_CHUNK
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.persistence.diffbase_storage = NoDiffs()
    settings.process.ultimate_exiting_timeout = None
    for kind in kinds:
        if kind.label_selector:
            selector = (kind.group, kind.version, kind.plural)
            settings.watching.label_selectors[selector] = kind.label_selector
    return settings


async def log_in(guard: StreamGuard) -> kopf.AiohttpSession:
    """Return a session with the credentials that `Cluster` uses.

    Kopf calls this again when the API server refuses the credentials, and closes the old sessions.
    Raises ClusterError as `load_configuration` does.
    """
    found = await load_configuration()
    header = await found.get_api_key_with_prefix("BearerToken") or ""
    scheme, __, token = header.strip().rpartition(" ")
    info = kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
    )
    headers = {**info.as_http_headers(), "Accept-Encoding": UNCOMPRESSED}
    session = open_session(guard, info.as_ssl_context(), headers, found.proxy)
    return kopf.AiohttpSession(server=found.host, aiohttp_session=session)


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps Kopf from making a deep copy of each object to compute the changes of the object.

    The operator compares objects in its own passes.
    """

    def build(self, **_: Any) -> kopf.BodyEssence:
        return cast(kopf.BodyEssence, {})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Store nothing, because the operator writes no annotation for Kopf."""


class NoMemories(ResourceMemories):
    """Keeps Kopf from storing a record of every existing object, which an event handler does not
    need.
    """

    async def recall(self, raw_body: kopf.RawBody, **options: Any) -> ResourceMemory:
        return await super().recall(raw_body, **{**options, "ephemeral": True})


class EndlessBackoffs:
    """Endless delays, in seconds, between the attempts of one request.

    Kopf gives up for good after the last delay, but an API server that is unreachable for an hour
    must not end the watches.
    """

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.8, 1.2)
            delay = min(delay * 2, 15.0)


def quieten() -> None:
    """Keep Kopf's messages about every call of a handler out of the log, unless its level is
    DEBUG.
    """
    is_debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
    logging.getLogger("kopf").setLevel(logging.INFO if is_debugging else logging.WARNING)
    # Kopf warns at every start that it handles no signals in this thread, which is intended.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)


def _settle(ended: "asyncio.Future[None]", error: Exception | None) -> None:
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
