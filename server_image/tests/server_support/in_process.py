"""Calls ASGI applications in process, with control over the client's actions during a request."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from llmservice_server.app import create_app
from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.errors import EngineUnavailable
from llmservice_server.exchange import BodyRoom, Exchange
from llmservice_server.gate import Admission, InFlight
from llmservice_server.generate import GenerateRequest, Piece, TokenizedPrompt
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.management import create_management_app
from llmservice_server.metrics import ServerMetrics
from llmservice_server.routers import Readers
from llmservice_server.settings import ServerSettings


@dataclass
class Answer:
    """The response that a client received."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One client of an ASGI application; `leave()` closes its connection."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._left = asyncio.Event()
        self.answered = asyncio.Event()
        """Set when the first part of a body has arrived."""

    def leave(self) -> None:
        self._left.set()

    async def get(self, path: str, query: str = "") -> Answer:
        return await self.request("GET", path, query=query)

    async def post(self, path: str, data: object) -> Answer:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return await self.request("POST", path, body)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | Sequence[bytes] = b"",
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> Answer:
        """Send a request, without a Content-Length unless `headers` contains it.

        `body` is the whole body or its parts. If the last of several parts is empty, the client
        stops sending before that part, so the body never ends.
        """
        answer = Answer()
        parts = [body] if isinstance(body, bytes) else list(body)
        stops = len(parts) > 1 and not parts[-1]

        async def receive() -> dict[str, Any]:
            if parts and not (stops and len(parts) == 1):
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                answer.body += message.get("body", b"")
                self.answered.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": query.encode(),
            "headers": [
                (name.lower().encode(), value.encode())
                for name, value in (
                    {"host": "test", "content-type": "application/json"} | (headers or {})
                ).items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await self._app(scope, receive, send)
        return answer


class ScriptedEngine:
    """An engine that returns given texts, and simulates faults that are rare in a real engine."""

    max_model_len = 32

    def __init__(self, *texts: str, dies: bool = False, hangs: bool = False) -> None:
        self._texts = texts
        self._dies = dies
        self._hangs = hangs
        self.aborted = False
        self.wanted: GenerateRequest | None = None
        """The last request."""
        self.started = asyncio.Event()

    async def tokenize(self, prompt: str) -> TokenizedPrompt:
        return TokenizedPrompt(len(prompt.split()), prompt)

    async def generate(
        self, prompt: TokenizedPrompt, wanted: GenerateRequest
    ) -> AsyncGenerator[Piece, None]:
        self.wanted = wanted
        self.started.set()
        finished = False
        try:
            for number, text in enumerate(self._texts, 1):
                is_last = number == len(self._texts) and not (self._dies or self._hangs)
                yield Piece(text, 1, "length" if is_last else None)
            if self._dies:
                raise EngineUnavailable("the engine of this replica failed; send it again")
            if self._hangs:
                await asyncio.Event().wait()
            finished = True
        finally:
            self.aborted = not finished


@dataclass
class Stack:
    """The API application with the parts that it depends on."""

    app: FastAPI
    lifecycle: Lifecycle
    in_flight: InFlight
    registry: CollectorRegistry
    turned_away: list[int]
    """Number of sequences of each refused request that counts as demand."""
    readers: Readers
    usage: EngineUsage


def make_stack(
    phase: Phase = Phase.READY,
    settings: ServerSettings | None = None,
    keys: ApiKeys | None = None,
) -> Stack:
    """Return the API application in the given phase, without an engine."""
    lifecycle, in_flight, registry = Lifecycle(), InFlight(), CollectorRegistry()
    readers, usage = Readers(), EngineUsage(Objectives())
    turned_away: list[int] = []
    app = create_app(
        Admission(
            lifecycle,
            ServerMetrics(registry, lifecycle, usage),
            in_flight,
            settings or ServerSettings(),
            keys,
            turned_away.append,
            usage.keys.answered,
            readers,
        )
    )
    lifecycle.enter(phase)
    return Stack(app, lifecycle, in_flight, registry, turned_away, readers, usage)


def make_management(lifecycle: Lifecycle, registry: CollectorRegistry | None = None) -> FastAPI:
    """Return the application on the management port, without an engine."""
    return create_management_app(
        lifecycle,
        registry or CollectorRegistry(),
        EngineUsage(Objectives()),
        asyncio.get_running_loop(),
    )


def make_exchange() -> Exchange:
    """Return an exchange in which neither side sends a message."""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: Any) -> None:
        raise AssertionError(message)

    return Exchange(
        receive,
        send,
        route=None,
        content_type=b"",
        max_body_bytes=1,
        body_room=BodyRoom(1),
        timeout_seconds=0,
        amend=lambda message: None,
        engine_has_died=lambda: False,
    )
