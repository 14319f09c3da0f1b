"""A proxy between the operator and the API server, with faults that a test sets."""

import asyncio
import json
import multiprocessing
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from llmservice_operator.cluster.client import load_configuration

_START_SECONDS = 10.0
_HOP_BY_HOP = ("Connection", "Content-Length", "Transfer-Encoding", "Content-Encoding", "Host")
WRITES = ("POST", "PUT", "PATCH", "DELETE")

Event = dict[str, Any]
"""A watch event: its type and its object."""


@dataclass
class Seen:
    """A request, and the status of its response.

    The status is None before the response, and 0 if the request was dropped.
    """

    agent: str
    method: str
    path: str
    query: dict[str, str]
    at: float
    """Time of arrival in seconds, on the clock `time.monotonic`."""
    status: int | None = None

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("true", "1")

    @property
    def is_list(self) -> bool:
        """Whether the request lists all objects of a kind that the operator watches."""
        return self.method == "GET" and "limit" in self.query and not self.is_watch

    @property
    def is_of_lease(self) -> bool:
        return "/leases" in self.path

    @property
    def is_write(self) -> bool:
        """Whether the request writes something other than a Lease, an Event or an access review."""
        chatter = ("/leases", "/events", "/selfsubject", "/subjectaccessreviews")
        return self.method in WRITES and not any(part in self.path for part in chatter)


@dataclass(frozen=True)
class Answer:
    """A response that replaces the API server's."""

    status: int
    body: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def failure(cls, status: int, message: str, **headers: str) -> "Answer":
        """Return a failure in the API server's format. `Retry_After` becomes a header."""
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps({**body, "message": message}), headers=named)

    @classmethod
    def page(cls, status: int = 200) -> "Answer":
        """Return the HTML page of a proxy that does not know Kubernetes."""
        return cls(status, "<html><body>Please log in</body></html>", "text/html")


@dataclass(frozen=True)
class Drop:
    """The connection closes without a response.

    The API server has received the request if `is_forwarded` is true.
    """

    is_forwarded: bool = False


@dataclass(frozen=True)
class Stall:
    """The connection stays open without a response."""


@dataclass(frozen=True)
class Cut:
    """The response breaks off after `after_bytes` bytes."""

    after_bytes: int


Fault = Answer | Drop | Stall | Cut


class Faults:
    """The faults that a test sets. Each function is called in the thread of the proxy."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all faults, so that the proxy forwards everything unchanged."""
        self.on_request: Callable[[Seen], Fault | None] = lambda _: None
        """Returns the fault that replaces the API server's response, or None."""
        self.delay_seconds: Callable[[Seen], float] = lambda _: 0.0
        self.before: Callable[[Seen], None] = lambda _: None
        """Called before a request is forwarded."""
        self.after: Callable[[Seen], None] = lambda _: None
        """Called after the API server's response, before the operator receives it."""
        self.on_events: Callable[[Seen, list[Event]], list[Event]] = lambda _, events: events
        """Takes the events that arrived together for a watch. Returns the events that the watch
        gets instead."""
        self.cuts_watch: Callable[[Seen], list[Event] | None] = lambda _: None
        """Returns the only events that a watch gets before it ends, or None if the watch gets all
        events."""
        self.on_list: Callable[[Seen, dict[str, Any]], dict[str, Any]] = lambda _, found: found
        """Takes a list. Returns the list that is sent instead, such as an older one."""


_CLOSING_SECONDS = 0.25


class FaultProxy:
    """Forwards requests to the API server that KUBECONFIG names, in a thread of its own."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.seen: list[Seen] = []
        """Every request so far, in the order of arrival."""
        self.open_watches: set[aiohttp.ClientResponse] = set()
        """The API server's responses to the open watches."""
        self.address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def requests(self, since: float = 0.0) -> list[Seen]:
        return [each for each in tuple(self.seen) if each.at >= since]

    def end_watches(self) -> None:
        """End every watch that is open, as the API server does after some minutes."""
        assert self._loop is not None, "the proxy was never started"
        for answer in tuple(self.open_watches):
            self._loop.call_soon_threadsafe(answer.close)

    def writes(self, since: float = 0.0) -> list[Seen]:
        return [each for each in self.requests(since) if each.is_write]

    def kubeconfig(self, folder: Path) -> str:
        """Write a kubeconfig that leads through the proxy; return its path."""
        path = folder / "proxied.conf"
        cluster = {"name": "c", "cluster": {"server": self.address}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        users = [{"name": "u", "user": {"token": "replaced-by-the-proxy"}}]
        document = {"current-context": "c", "contexts": [context], "clusters": [cluster]}
        path.write_text(yaml.safe_dump({**document, "users": users}))
        return str(path)

    async def serve(self, started: Future[None]) -> None:
        """Serve until `stop` is called."""
        self._loop, stop = asyncio.get_running_loop(), self._stopping
        found = await load_configuration()
        context = ssl.create_default_context(cafile=found.ssl_ca_cert)
        if found.cert_file:
            context.load_cert_chain(found.cert_file, found.key_file)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as session:
            handler = _Handler(self, session, found.host)
            server = web.Server(handler.handle, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set_result(None)
            await stop.wait()
            await runner.cleanup()
        # A TLS connection takes some iterations of the loop to close. Until then it seems leaked.
        await asyncio.sleep(_CLOSING_SECONDS)

    def stop(self) -> None:
        """Stop the thread of the proxy."""
        assert self._loop is not None, "the proxy was never started"
        self._loop.call_soon_threadsafe(self._stopping.set)


class _Handler:
    def __init__(self, proxy: FaultProxy, session: aiohttp.ClientSession, server: str) -> None:
        self._proxy = proxy
        self._session = session
        self._server = server

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(
            request.headers.get("User-Agent", ""),
            request.method,
            request.path,
            dict(request.query),
            time.monotonic(),
        )
        self._proxy.seen.append(seen)
        body, faults = await request.read(), self._proxy.faults
        if delay := faults.delay_seconds(seen):
            await asyncio.sleep(delay)
        faults.before(seen)
        fault = faults.on_request(seen)
        match fault:
            case Answer():
                seen.status = fault.status
                return web.Response(
                    status=fault.status,
                    text=fault.body,
                    content_type=fault.content_type,
                    headers=fault.headers,
                )
            case Drop(is_forwarded=False):
                return self._drop(request, seen)
            case Stall():
                await asyncio.Event().wait()
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in (*_HOP_BY_HOP, "Authorization")
        }
        endless = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method,
            self._server + request.path_qs,
            data=body or None,  # aiohttp adds a content type to an empty body
            headers=headers,
            timeout=endless,
        ) as answer:
            seen.status = answer.status
            if seen.is_watch and answer.status == 200:
                return await self._watch(request, seen, answer)
            text = await answer.read()
            faults.after(seen)
            if fault == Drop(is_forwarded=True):
                return self._drop(request, seen)
            return await self._answer(request, seen, answer, text, fault)

    async def _answer(
        self,
        request: web.BaseRequest,
        seen: Seen,
        answer: aiohttp.ClientResponse,
        text: bytes,
        fault: Fault | None,
    ) -> web.StreamResponse:
        is_list = seen.method == "GET" and answer.status == 200 and b'"items"' in text
        if is_list:
            text = json.dumps(self._proxy.faults.on_list(seen, json.loads(text))).encode()
        headers = {k: v for k, v in answer.headers.items() if k not in _HOP_BY_HOP}
        if not isinstance(fault, Cut):
            return web.Response(status=answer.status, body=text, headers=headers)
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(text)
        await response.prepare(request)
        await response.write(text[: fault.after_bytes])
        return self._drop(request, seen, response)

    async def _watch(
        self, request: web.BaseRequest, seen: Seen, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        faults = self._proxy.faults
        if (only := faults.cuts_watch(seen)) is not None:
            for event in only:
                await response.write(json.dumps(event).encode() + b"\n")
            return response
        self._proxy.open_watches.add(answer)
        try:
            await self._forward_events(seen, answer, response)
        except aiohttp.ClientError:
            pass  # the watch was ended
        finally:
            self._proxy.open_watches.discard(answer)
        return response

    async def _forward_events(
        self, seen: Seen, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> None:
        rest, faults = b"", self._proxy.faults
        async for chunk in answer.content.iter_any():
            *lines, rest = (rest + chunk).split(b"\n")
            events = faults.on_events(seen, [json.loads(line) for line in lines])
            for event in events:
                await response.write(json.dumps(event).encode() + b"\n")

    @staticmethod
    def _drop(
        request: web.BaseRequest, seen: Seen, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        seen.status = 0
        if request.transport is not None:
            request.transport.abort()
        return response or web.Response(status=500)


@contextmanager
def fault_proxy() -> Iterator[FaultProxy]:
    """Run a proxy. It forwards everything unchanged until a test sets faults."""
    proxy, started = FaultProxy(), Future[None]()

    def run() -> None:
        try:
            asyncio.run(proxy.serve(started))
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=run, name="fault proxy", daemon=True)
    thread.start()
    started.result(_START_SECONDS)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(_START_SECONDS)


class _Process(BaseManager):
    """The process of a proxy."""


_UNTIL_EXIT = ExitStack()


def _started_proxy() -> FaultProxy:
    return _UNTIL_EXIT.enter_context(fault_proxy())


_Process.register("proxy", _started_proxy)


@contextmanager
def proxy_of_its_own_process() -> Iterator[FaultProxy]:
    """Run a proxy without faults in a process of its own, for a test whose threads are busy.

    The threads of one process run one at a time, so they would delay the operator's requests.
    """
    with _Process(ctx=multiprocessing.get_context("spawn")) as process:
        yield process.proxy()  # type: ignore[attr-defined]


GONE = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "too old resource version",
        "reason": "Expired",
        "code": 410,
    },
}
"""Event that ends a watch whose resource version is too old for the API server."""
