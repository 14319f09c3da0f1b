"""Fills the model cache. Servers that share a cache take turns.

A server with its own cache needs no turns, and vLLM downloads the small files into that cache.
"""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from llmservice_server.download import ModelDownload
from llmservice_server.lifecycle import DownloadProgress, Lifecycle, Phase
from llmservice_server.settings import ServerSettings
from llmservice_server.shared_cache import SharedCache

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_SECONDS = 0.5


class OwnCache:
    """A cache that only this server uses."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def fill_configuration(self, download: ModelDownload) -> None:
        """Choose the weight files. A shared cache also gets the other files that vLLM loads."""
        await asyncio.to_thread(download.choose_weights)

    async def fill_weights(self, download: ModelDownload) -> None:
        """Download the weights and report the progress to the lifecycle."""
        # Measure again, because creating the engine's configuration may have downloaded small
        # files.
        await asyncio.to_thread(download.measure)
        running = asyncio.ensure_future(asyncio.to_thread(download.fetch_weights))
        while not running.done():
            done = await asyncio.to_thread(download.bytes_done)
            self._lifecycle.download = DownloadProgress(done, download.bytes_total)
            await asyncio.wait((running,), timeout=_PROGRESS_INTERVAL_SECONDS)
        await running
        self._lifecycle.download = DownloadProgress(download.bytes_total, download.bytes_total)
        logger.info("the weights are on disk: %d bytes", download.bytes_total)

    @asynccontextmanager
    async def compiling(self, inputs: Sequence[str]) -> AsyncIterator[None]:
        """Enter the context when compiled kernels may be written.

        `inputs` are texts on which the compiled kernels depend.
        """
        yield


class Shared(OwnCache):
    """A shared cache, to which one server at a time writes."""

    def __init__(self, lifecycle: Lifecycle, cache: SharedCache, compiled: Path | None) -> None:
        super().__init__(lifecycle)
        self._cache = cache
        self._compiled = compiled
        """Folder of compiled kernels if they are shared; otherwise None."""

    async def fill_configuration(self, download: ModelDownload) -> None:
        async with self._turn(download.folder, download.has_configuration) as is_ours:
            if is_ours:
                await asyncio.to_thread(download.remove_locks)
                await asyncio.to_thread(download.fetch_configuration)
        await super().fill_configuration(download)

    async def fill_weights(self, download: ModelDownload) -> None:
        async with self._turn(download.folder, download.has_weights, download) as is_ours:
            if is_ours:
                await asyncio.to_thread(download.remove_locks)
                await super().fill_weights(download)

    @asynccontextmanager
    async def compiling(self, inputs: Sequence[str]) -> AsyncIterator[None]:
        if self._compiled is None:
            yield
            return
        # Kernels also depend on the GPU, but the key need not contain the GPU, because servers on
        # different GPUs use different folders.
        key = hashlib.sha256(json.dumps(list(inputs)).encode()).hexdigest()[:16]
        marker = self._compiled / f"compiled-{key}"
        async with self._turn(f"{self._compiled.name}-{key}", marker.exists) as is_ours:
            yield
            if is_ours:
                await asyncio.to_thread(_touch, marker)

    @asynccontextmanager
    async def _turn(
        self, part: str, is_filled: Callable[[], bool], download: ModelDownload | None = None
    ) -> AsyncIterator[bool]:
        async def waiting(writer: str) -> None:
            if download is not None:
                done = await asyncio.to_thread(download.bytes_done)
                self._lifecycle.download = DownloadProgress(done, download.bytes_total)
            self._lifecycle.wait_for_cache(writer)

        async with self._cache.turn(part, is_filled, waiting) as is_ours:
            if self._lifecycle.phase is Phase.WAITING_FOR_CACHE:
                self._lifecycle.enter(Phase.DOWNLOADING)
            yield is_ours


def _touch(marker: Path) -> None:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def shared_cache(settings: ServerSettings, lifecycle: Lifecycle) -> OwnCache:
    """Return the cache that the settings describe."""
    folder = settings.shared_cache_directory
    if folder is None:
        return OwnCache(lifecycle)
    kernels = Path(os.environ.get("VLLM_CACHE_ROOT", "/nowhere"))
    compiled = kernels.parent if kernels.is_relative_to(folder) else None
    return Shared(lifecycle, SharedCache(folder, settings.cache_takeover_seconds), compiled)
