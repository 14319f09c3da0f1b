"""A watch as the API server answers it: a list, then a stream of events of any length."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from llmservice_operator.cluster import Cluster, Watched
from llmservice_operator.kinds import PODS


class Observer:
    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        pass


def pod(name: str, version: int, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ml", "name": name, "resourceVersion": str(version), **metadata}
    }


def event(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": item}


@dataclass
class ApiServer:
    """Answers lists and watches, one after the other, as told."""

    lists: list[list[dict[str, Any]]]
    watches: list[list[dict[str, Any]]] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    asked_again: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(dict(request.query))
        if "watch" not in request.query:
            if not self.lists:
                if len(self.queries) > 1:
                    self.asked_again.set()
                return web.json_response({"message": "no"}, status=403)
            version = {"resourceVersion": str(10 * len(self.queries))}
            return web.json_response({"metadata": version, "items": self.lists.pop(0)})
        stream = web.StreamResponse()
        await stream.prepare(request)
        if not self.watches:
            self.finished.set()
            await asyncio.Event().wait()
        text = "".join(f"{json.dumps(it)}\n" for it in self.watches.pop(0)).encode()
        # In pieces that end anywhere, as from a network.
        for start in range(0, len(text), 60_000):
            await stream.write(text[start : start + 60_000])
        return stream

    @asynccontextmanager
    async def watched(self, **options: Any) -> AsyncIterator[Watched]:
        app = web.Application()
        app.router.add_get("/api/v1/pods", self.answer)
        async with TestServer(app) as server:
            address = str(server.make_url("")).rstrip("/")
            cluster = Cluster(ApiClient(Configuration(host=address)), Observer())
            watched = Watched(cluster, PODS, **options)
            running = asyncio.create_task(watched.run())
            try:
                yield watched
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await cluster.close()


async def test_a_list_and_every_later_event_make_up_what_there_is() -> None:
    long = pod("long", 12, annotations={"note": "x" * 200_000})
    server = ApiServer(
        [[pod("a", 5, managedFields=[1]), pod("b", 6)]],
        [
            [event("ADDED", long), event("MODIFIED", pod("a", 13, uid="new"))],
            [event("BOOKMARK", pod("", 14)), event("DELETED", pod("b", 15))],
        ],
    )
    changes: list[int] = []
    async with server.watched(changed=lambda: changes.append(1)) as watched:
        await asyncio.wait_for(server.finished.wait(), 10)

    assert [name for _, name in watched.objects] == ["a", "long"]
    assert watched.objects["ml", "a"]["metadata"]["uid"] == "new"
    assert "managedFields" not in watched.objects["ml", "a"]["metadata"]
    assert watched.objects["ml", "long"] == {**long}
    assert len(changes) == 4
    assert [query.get("resourceVersion") for query in server.queries] == [None, "10", "13", "15"]


async def test_a_version_that_is_too_old_leads_to_a_new_list() -> None:
    gone = event("ERROR", {"code": 410, "message": "too old resource version"})
    server = ApiServer([[pod("a", 5)], [pod("b", 6)]], [[gone]])
    async with server.watched() as watched:
        await asyncio.wait_for(server.finished.wait(), 10)

    assert [name for _, name in watched.objects] == ["b"]
    assert watched.problem is None


async def test_one_object_is_asked_for_by_its_name() -> None:
    server = ApiServer([[]])
    async with server.watched(name="one") as watched:
        await asyncio.wait_for(server.finished.wait(), 10)

    assert watched.loaded.is_set()
    assert {query["fieldSelector"] for query in server.queries} == {"metadata.name=one"}


async def test_what_the_api_server_refuses_is_said_and_asked_again() -> None:
    server = ApiServer([])
    async with server.watched() as watched:
        await asyncio.wait_for(server.asked_again.wait(), 10)
        assert not watched.loaded.is_set()
        assert watched.problem is not None
        assert "403" in watched.problem
