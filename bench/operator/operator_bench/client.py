"""A bare client of the API server, and watches of the stored objects."""

import asyncio
import json
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp

from llmservice_operator.cluster.client import load_configuration
from llmservice_operator.kinds import LLMSERVICES, Kind

USER_AGENT = "bench-operator"
CONNECTIONS = 32
"""Number of concurrent requests. It equals the number of workers of the operator."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_WATCH_PAUSE_SECONDS = 0.1

Manifest = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name."""
Item = TypeVar("Item")


class BenchError(Exception):
    """The API server refused a request of the bench, or a figure cannot be measured."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Sends requests with the administrator's credentials of the kubeconfig."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._session = session

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        **query: str,
    ) -> Manifest:
        """Send one request. Raises BenchError with the server's message if it is refused."""
        async with self._session.request(
            method,
            self._server + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
            timeout=aiohttp.ClientTimeout(total=60),
        ) as answer:
            found: Manifest = await answer.json(content_type=None)
        if answer.status >= 400:
            message = f"{method} {path}: {answer.status}: {found.get('message')}"
            raise BenchError(message, answer.status)
        return found

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> None:
        """Apply one object with server-side apply, as the operator does."""
        metadata = manifest["metadata"]
        await self.send(
            "PATCH",
            kind.path(metadata["namespace"], metadata["name"]),
            manifest,
            "application/apply-patch+yaml",
            fieldManager=USER_AGENT,
            force="true",
            fieldValidation="Strict",
        )

    async def merge(self, kind: Kind, key: Key, change: Any, subresource: str = "") -> None:
        """Merge a change into an object."""
        await self.send(
            "PATCH", kind.path(*key, subresource), change, "application/merge-patch+json"
        )

    async def events(self, kind: Kind, *, whole: bool) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield an ADDED event for each existing object, and then every later event, without end.

        Without `whole`, events contain only metadata. Raises BenchError when the server has dropped
        events that were not read yet.
        """
        path = self._server + kind.path()
        query = {"labelSelector": kind.label_selector} if kind.label_selector else {}
        accept = "application/json" if whole else _METADATA_ONLY
        headers = {"Accept": accept}
        async with self._session.get(path, params=query, headers=headers) as answer:
            listed = await answer.json(content_type=None)
        for item in listed["items"] or ():  # null if there are none
            yield "ADDED", item
        query |= {"watch": "1", "resourceVersion": listed["metadata"]["resourceVersion"]}
        headers = {"Accept": accept.replace("MetadataList", "Metadata")}
        endless = aiohttp.ClientTimeout(total=None)
        while True:
            async with self._session.get(
                path, params=query, headers=headers, timeout=endless
            ) as answer:
                async for event in _events_of(answer):
                    type_, manifest = event["type"], event["object"]
                    if type_ == "ERROR":
                        raise BenchError(f"watch of {kind.plural}: {manifest}")
                    yield type_, manifest
                    query["resourceVersion"] = manifest["metadata"]["resourceVersion"]
            # The API server ends a watch after some minutes, or when its events are read too late.
            await asyncio.sleep(_WATCH_PAUSE_SECONDS)


async def _events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[Manifest]:
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)


@asynccontextmanager
async def connect() -> AsyncIterator[Client]:
    """Connect with the credentials of KUBECONFIG."""
    found = await load_configuration()
    context = ssl.create_default_context(cafile=found.ssl_ca_cert)
    context.load_cert_chain(found.cert_file, found.key_file)
    connector = aiohttp.TCPConnector(ssl=context, limit=4 * CONNECTIONS)
    headers = {"User-Agent": USER_AGENT}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield Client(found.host, session)


async def for_each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[object]], at_once: int = CONNECTIONS
) -> None:
    """Call the function for every item, with a limited number of calls at a time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


class Watched:
    """The existing objects of some kinds, and the time of each kind's last change, from watches."""

    def __init__(self, client: Client, kinds: Iterable[Kind]) -> None:
        self._client = client
        self._kinds = tuple(kinds)
        self.existing: defaultdict[Kind, set[Key]] = defaultdict(set)
        self.changed_at: dict[Kind, float] = {}
        """Time at which the watch of each kind last reported a new or a deleted object, on the
        clock `time.monotonic`."""
        self.on_added: dict[Kind, Callable[[Key], None]] = {}
        """Callback of each kind, called once for every object that the watch reports."""
        self.on_service: Callable[[Key, Manifest], None] = lambda *_: None
        """Callback for every LLMService that exists, is created or changes, with its key and
        manifest."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch while the context is open. The error of a failed watch ends the context."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._watch(kind)) for kind in self._kinds]
            yield
            for task in tasks:
                task.cancel()

    def count(self, kind: Kind) -> int:
        return len(self.existing[kind])

    async def _watch(self, kind: Kind) -> None:
        known, is_service = self.existing[kind], kind is LLMSERVICES
        async for type_, manifest in self._client.events(kind, whole=is_service):
            metadata = manifest["metadata"]
            key = metadata["namespace"], metadata["name"]
            if type_ == "DELETED":
                known.discard(key)
            else:
                is_new = key not in known
                known.add(key)
                if is_service:
                    self.on_service(key, manifest)
                if not is_new:
                    continue
                if kind in self.on_added:
                    self.on_added[kind](key)
            self.changed_at[kind] = time.monotonic()
