"""Follows the list of LoRA adapters: downloads, loads, serves and unloads them at runtime.

The operator writes the list into a ConfigMap. The kubelet updates its mounted copy within about a
minute, so changing adapters restarts no pod.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from llmservice_server.adapter_files import (
    AdapterLimits,
    AdapterRefused,
    fetch,
    remove,
    remove_all_but,
)
from llmservice_server.adapter_list import Adapter, AdapterList, parse_list
from llmservice_server.download import is_refusal
from llmservice_server.engine_adapters import EngineAdapters, LoadedAdapter
from llmservice_server.failures import Reason, classify, facts_of

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_LIST_BYTES = 1024**2
_LOAD_SECONDS = 300.0
"""Maximum time in seconds to load an adapter into the engine. Other requests wait during a load."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
"""First and longest pause, in seconds, between attempts to fetch an adapter after the hub fails or
refuses. The pause doubles with each attempt."""

_UNUSED_SECONDS = 5.0
"""Time in seconds without use after which an adapter that has left the list is unloaded."""

_LONGEST_MESSAGE = 200
"""Maximum length of a failure message in characters. The total size of all reports is limited."""

_UNKNOWN_MODULES = re.compile(r"expected target modules in .* but received \[(.*?)\]", re.DOTALL)
"""Pattern of vLLM's message about modules that the model lacks or that vLLM cannot adapt."""

_AT_ONCE = 2
"""Maximum number of adapters that are fetched and loaded at the same time."""


class State(StrEnum):
    """States of an adapter on a server."""

    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


class Requests(Protocol):
    """The requests in progress."""

    def open(self) -> frozenset[object]: ...


@dataclass
class _Held:
    """An adapter of this server, and the state of its load."""

    adapter: Adapter
    state: State = State.LOADING
    message: str = ""
    """Cause of the last failure; empty if there is none."""

    loaded: LoadedAdapter | None = None
    attempt: "asyncio.Task[None] | None" = None
    """The latest attempt to load the adapter. It may have ended."""

    try_again_at: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS
    is_settled: bool = False
    """Whether the server may become ready without waiting for the adapter."""

    may_use: frozenset[object] | None = None
    """Requests that may still use the adapter because they were in progress when it left the list;
    None for a listed adapter."""

    unused_since: float | None = None

    @property
    def is_being_loaded(self) -> bool:
        return self.attempt is not None and not self.attempt.done()


@dataclass
class AdapterFile:
    """The mounted file with the list of adapters."""

    path: Path
    _seen: object = field(default=None, init=False)

    def read(self) -> AdapterList | None:
        """Return the list, or None if the file has not changed since the last call.

        Raises OSError if the file cannot be read, and ValueError if the list is invalid.
        """
        stat = self.path.stat()
        found = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if found == self._seen:
            return None
        self._seen = found
        if stat.st_size > _LIST_BYTES:
            raise ValueError(f"the list has more than {_LIST_BYTES} bytes")
        return parse_list(self.path.read_text())


class Adapters:
    """The adapters of one server."""

    def __init__(
        self,
        file: AdapterFile,
        folder: Path,
        limits: AdapterLimits,
        engine: EngineAdapters,
        requests: Requests,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with an empty list. `folder` contains the downloaded adapters."""
        self._file = file
        self._folder = folder
        self._limits = limits
        self._engine = engine
        self._requests = requests
        self._clock = clock
        self._list = AdapterList()
        self._held: dict[Adapter, _Held] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def load_first(self) -> None:
        """Load the adapters of the current list.

        Returns when each adapter is loaded or refused, or has left the list. Raises OSError if the
        list cannot be read, and ValueError if it is invalid.
        """
        self._list = self._file.read() or AdapterList()
        first = self._list.all
        await asyncio.to_thread(remove_all_but, first, self._folder)
        await self._step()
        while not all(self._is_settled(each) for each in first):
            await asyncio.sleep(_LOOK_SECONDS / 10)
            await self.look()

    async def follow(self) -> None:
        """Follow the list until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                logger.exception("the adapters could not be brought up to date")

    async def look(self) -> None:
        """Read the list if it has changed, and start the loads and unloads that are due.

        If the file cannot be read or is invalid, the last list stays in use.
        """
        try:
            self._list = self._file.read() or self._list
        except (OSError, ValueError) as error:
            logger.warning("the list of adapters stays the same, because of the file: %s", error)
        await self._step()

    def report(self) -> list[dict[str, object]]:
        """Return the state of each adapter on the list, for /autoscale."""
        return [
            {
                "name": held.adapter.name,
                "source": held.adapter.source,
                "revision": held.adapter.revision,
                "state": held.state.value,
                "message": held.message,
            }
            for held in self._held.values()
            if held.may_use is None
        ]

    def _is_settled(self, adapter: Adapter) -> bool:
        held = self._held.get(adapter)
        # The server does not wait for an adapter that has left the list.
        return held is None or held.may_use is not None or held.is_settled

    async def _step(self) -> None:
        listed, now = self._list.all, self._clock()
        for adapter in listed:
            held = self._held.setdefault(adapter, _Held(adapter))
            held.may_use = held.unused_since = None
            is_due = held.state is State.LOADING and now >= held.try_again_at
            if is_due and not held.is_being_loaded:
                held.attempt = asyncio.ensure_future(self._load(held))
        for adapter in self._held.keys() - set(listed):
            held = self._held[adapter]
            if held.may_use is None:
                held.may_use = self._requests.open()
        self._serve()
        for held in list(self._held.values()):
            if held.may_use is not None and self._has_been_unused(held, now):
                await self._remove(held)

    def _serve(self) -> None:
        served, missing = {}, {}
        for adapter in self._list.for_clients:
            held = self._held[adapter]
            if held.loaded is not None:
                served[adapter.name] = held.loaded
            elif self._list.served is not None:
                missing[adapter.name] = held.message or "it is loading"
        self._engine.serve(served, missing)

    def _has_been_unused(self, held: _Held, now: float) -> bool:
        """Return whether an adapter that has left the list has been unused for long enough.

        The engine fails if a request needs an adapter whose files are gone. A background response
        begins only after its request has ended, so one check without use is not enough.
        """
        is_used = (
            held.is_being_loaded
            or not self._requests.open().isdisjoint(held.may_use or ())
            or (held.loaded is not None and self._engine.is_in_use(held.loaded))
        )
        if is_used or held.unused_since is None:
            held.unused_since = None if is_used else now
        return held.unused_since is not None and now - held.unused_since >= _UNUSED_SECONDS

    async def _remove(self, held: _Held) -> None:
        del self._held[held.adapter]
        if held.loaded is not None:
            await self._engine.unload(held.loaded)
            logger.info("unloaded the adapter %s", held.adapter.name)
        if all(each.digest != held.adapter.digest for each in self._held):
            await asyncio.to_thread(remove, held.adapter, self._folder)

    async def _load(self, held: _Held) -> None:
        """Try once to fetch and load an adapter."""
        try:
            async with self._turns:
                held.loaded = await self._attempt(held.adapter)
        except Exception as error:
            held.message = _reason(error)
            held.is_settled |= _is_settled_by(error)
            if isinstance(error, AdapterRefused):
                held.state = State.FAILED
            held.try_again_at = self._clock() + held.pause
            held.pause = min(2 * held.pause, _LONGEST_PAUSE_SECONDS)
            logger.warning("the adapter %s: %s", held.adapter.name, held.message)
        else:
            held.state, held.message, held.is_settled = State.LOADED, "", True
            logger.info("loaded the adapter %s", held.adapter.name)
        self._serve()

    async def _attempt(self, adapter: Adapter) -> LoadedAdapter:
        if self._engine.is_name_of_model(adapter.name):
            raise AdapterRefused("the model itself is served by this name: choose another name")
        folder = await asyncio.to_thread(fetch, adapter, self._folder, self._limits)
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                return await self._engine.load(adapter, folder)
        except Exception as error:
            raise AdapterRefused(_words_of_engine(error)) from error


def _is_settled_by(error: Exception) -> bool:
    """Return whether the server may become ready without the adapter after this error.

    If the hub does not respond, the server is not ready until a later attempt succeeds.
    """
    return isinstance(error, AdapterRefused) or is_refusal(error)


def _reason(error: Exception) -> str:
    if isinstance(error, AdapterRefused):
        said = str(error)
    else:
        failure = classify(facts_of(error), Reason.LOAD_FAILED)
        said = failure.finding or failure.message
    return said if len(said) <= _LONGEST_MESSAGE else f"{said[: _LONGEST_MESSAGE - 1]}…"


def _words_of_engine(error: Exception) -> str:
    """Return the engine's reason for refusing an adapter, in one line."""
    modules = _UNKNOWN_MODULES.search(str(error))
    if modules is not None:
        named = modules[1].replace("'", "")
        return f"it changes modules that the engine cannot adapt: {named}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the engine refused it: {lines[-1].removeprefix('Call to add_lora method failed: ')}"
