"""An API server of pods for Kopf's watches, and the events that the watches deliver."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from llmservice_operator.cluster.watching import watch
from llmservice_operator.kinds import PODS
from shared_support.waiting import eventually_in_loop

RESOURCES = [
    {"name": "pods", "singularName": "pod", "kind": "Pod", "namespaced": True},
    # Kopf waits for this resource, whatever it watches.
    {"name": "namespaces", "singularName": "namespace", "kind": "Namespace", "namespaced": False},
]


def pod(name: str, version: int, **metadata: Any) -> dict[str, Any]:
    found = {"namespace": "ml", "name": name, "uid": name, "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**found, **metadata}}


def event(type_: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": type_, "object": item}


@dataclass
class ApiServer:
    """Serves pods. Each request gets the next response of `lists` or `watches`."""

    port: int
    lists: list[list[dict[str, Any]]]
    watches: list[list[dict[str, Any] | str]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    status: int = 200
    refusals: int = 0
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    pages: list[tuple[str, Callable[[], web.Response]]] = field(default_factory=list)
    """Responses of a proxy, each for one request whose URL contains the given text."""
    ends_watches: bool = False
    """True if a watch without further events ends immediately."""
    asked: list[str] = field(default_factory=list)
    """The URL of every request to a collection."""
    encodings: set[str] = field(default_factory=set)
    """The encodings of responses that the requests accept."""

    async def discover(self, request: web.Request) -> web.Response:
        answers: dict[str, Any] = {
            "/api": {"versions": ["v1"]},
            "/apis": {"groups": []},
            "/api/v1": {"resources": [{**it, "verbs": ["list", "watch"]} for it in RESOURCES]},
        }
        return web.json_response(answers[request.path])

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(str(request.rel_url))
        self.encodings.add(request.headers["Accept-Encoding"])
        for index, (text, page) in enumerate(self.pages):
            if text in self.asked[-1]:
                del self.pages[index]
                return page()
        if self.status != 200:
            self.refusals += 1
            return web.json_response({"code": self.status, "message": "no"}, status=self.status)
        self.queries.append(dict(request.query))
        if "watch" not in request.query:
            metadata = {"resourceVersion": str(10 * len(self.queries))}
            items = self.lists.pop(0) if self.lists else []
            listed = {"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}
            return web.json_response(listed)
        stream = web.StreamResponse()
        await stream.prepare(request)
        if not self.watches and self.ends_watches:
            return stream
        if not self.watches:
            await self.leaving.wait()
            return stream
        lines = (it if isinstance(it, str) else f"{json.dumps(it)}\n" for it in self.watches.pop(0))
        sent = "".join(lines).encode()
        # The pieces end at arbitrary bytes, as on a network.
        for start in range(0, len(sent), 60_000):
            await stream.write(sent[start : start + 60_000])
        return stream

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.leaving.clear()
        app = web.Application()
        for path in ("/api", "/apis", "/api/v1"):
            app.router.add_get(path, self.discover)
        app.router.add_get("/api/v1/pods", self.answer)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            self.leaving.set()
            await runner.cleanup()


@dataclass
class Watching:
    events: list[tuple[str, str]] = field(default_factory=list)
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    troubles: list[tuple[str, str | None]] = field(default_factory=list)

    def trouble(self, path: str, problem: str | None) -> None:
        self.troubles.append((path, problem))

    def note(self, type_: str, manifest: dict[str, Any]) -> None:
        self.events.append((type_, manifest["metadata"]["name"]))
        self.newest[manifest["metadata"]["name"]] = manifest
        self.threads.add(threading.get_ident())

    async def until(self, *events: tuple[str, str]) -> None:
        await eventually_in_loop(lambda: self.events == list(events), 20)


@asynccontextmanager
async def watching(*namespaces: str) -> AsyncIterator[Watching]:
    found = Watching()
    running = asyncio.create_task(
        watch((PODS,), namespaces or [None], found.note, found.stop, found.trouble)
    )
    try:
        yield found
    finally:
        found.stop.set()
        await asyncio.wait_for(running, 20)


@contextmanager
def an_api_server(port: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Yield an API server, which KUBECONFIG names. It responds only while `serving` runs."""
    address = f"http://127.0.0.1:{port}"
    context = {"cluster": "test", "user": "test"}
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "test",
                "contexts": [{"name": "test", "context": context}],
                "clusters": [{"name": "test", "cluster": {"server": address}}],
                "users": [{"name": "test", "user": {}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    kopf = logging.getLogger("kopf")
    level = kopf.level
    yield ApiServer(port, [])
    kopf.setLevel(level)
