"""Coordinates servers that share a cache: one of them fills it, and the others wait.

The servers communicate only through files on the claim, which may be a network file system. Each
server can be killed at any moment. So a turn, the right to fill the cache, is a file whose name is
a number. The server that creates the file of the next number has the turn. Files are created
exclusively, so only one server can do this. Numbers only grow. When a turn ends, its file gets
another name with the same number. So a server that was paused for a long time can never take a
number that has been used.
"""

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from llmservice_server.failures import CACHE_LOST, StartRefused

_HELD, _ENDED = "held", "ended"

_BEATS_PER_TAKEOVER = 6
"""Number of signs of life within the takeover time. A writer may miss some, because network file
systems pause and an import can block every thread."""

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class _Turn:
    """One turn, as its file in the folder shows it."""

    number: int
    is_held: bool
    path: Path


class Writer:
    """The turn of this process. A thread gives signs of life until the turn ends."""

    def __init__(self, turn: Path, number: int, beat_seconds: float) -> None:
        self._turn = turn
        self._number = number
        self._beat_seconds = beat_seconds
        self._over = threading.Event()
        self._file = os.open(turn, os.O_WRONLY)
        self.on_loss: Callable[[], None] = lambda: None
        """Called in the thread when another server has taken the turn from this process."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._beat, name="cache-writer", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the turn, so that a waiting server gets the next one at once."""
        self._over.set()
        # If this fails, another server has taken the turn or will take it when the signs of life
        # stop.
        with suppress(OSError):
            self._turn.rename(self._turn.with_suffix(f".{_ENDED}"))
        with suppress(OSError):
            os.close(self._file)

    def _beat(self) -> None:
        while not self._over.wait(self._beat_seconds):
            if not self._gives_sign() or self._is_replaced():
                self.on_loss()
                return

    def _gives_sign(self) -> bool:
        """Give a sign of life; return whether the file of the turn still exists."""
        try:
            os.utime(self._file)
        except OSError as error:
            # A network file system reports ESTALE when another server has removed the file. Other
            # errors are ignored, because the storage may be unavailable for a moment.
            return error.errno != errno.ESTALE
        return True

    def _is_replaced(self) -> bool:
        """Return whether another server has taken the turn."""
        try:
            return any(turn.number > self._number for turn in _turns(self._turn.parent))
        except OSError as error:
            return error.errno == errno.ESTALE


class FillLock:
    """The right to write to one part of the cache. Its methods block, so call them in a thread."""

    def __init__(
        self,
        folder: Path,
        takeover_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._takeover_seconds = takeover_seconds
        self._clock = clock
        self._sign: tuple[Path, int] | None = None
        self._sign_seen_at = 0.0
        self.holder = ""
        """Host name of the server that had the turn at the last attempt to take it."""

    def try_acquire(self) -> Writer | None:
        """Take the turn; return None while a live server has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        newest = max(_turns(self._folder), key=lambda turn: turn.number, default=None)
        if newest is not None and newest.is_held and self._is_alive(newest):
            return None
        return self._take(0 if newest is None else newest.number + 1)

    def _is_alive(self, turn: _Turn) -> bool:
        """Return whether the file of the turn has changed within the takeover time.

        The local clock measures this time, because the storage's clock may differ. The file is
        opened first, because this makes a network file system query its server.
        """
        try:
            with turn.path.open() as file:
                sign = turn.path, os.fstat(file.fileno()).st_mtime_ns
                self.holder = file.read()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return True  # the turn ended just now
            raise
        if sign != self._sign:
            self._sign, self._sign_seen_at = sign, self._clock()
        return self._clock() - self._sign_seen_at < self._takeover_seconds

    def _take(self, number: int) -> Writer | None:
        path = self._folder / f"{number:010}.{_HELD}"
        try:
            with path.open("x") as file:
                file.write(socket.gethostname())
        except FileExistsError:
            return None
        others = [turn for turn in _turns(self._folder) if turn.path != path]
        if any(turn.number >= number for turn in others):
            # This server's view was outdated: this number or a later one has been used.
            path.unlink(missing_ok=True)
            return None
        for turn in others:
            turn.path.unlink(missing_ok=True)
        return Writer(path, number, self._takeover_seconds / _BEATS_PER_TAKEOVER)


def _turns(folder: Path) -> list[_Turn]:
    return [
        _Turn(int(path.stem), path.suffix == f".{_HELD}", path)
        for path in folder.iterdir()
        if path.stem.isdecimal()
    ]


@dataclass(frozen=True)
class SharedCache:
    """A cache folder that several servers share."""

    folder: Path
    takeover_seconds: float
    """Time in seconds without a sign of life from the writer, after which another server takes
    over."""

    @asynccontextmanager
    async def turn(
        self,
        part: str,
        is_filled: Callable[[], bool],
        waiting: Callable[[str], Awaitable[None]],
    ) -> AsyncIterator[bool]:
        """Enter the context when the part is filled or this server may fill it.

        Yields True if this server must fill the part, and False if the part is filled.

        `is_filled` is called in a thread. While this server waits, `waiting` is called with the
        name of the current writer. Raises StartRefused when another server has taken the turn,
        because this server must then stop writing.
        """
        lock = FillLock(self.folder / "locks" / part, self.takeover_seconds)
        while not await asyncio.to_thread(is_filled):
            writer = await asyncio.to_thread(lock.try_acquire)
            if writer is None:
                await waiting(lock.holder)
                await asyncio.sleep(_POLL_SECONDS)
                continue
            with writer:
                if await asyncio.to_thread(is_filled):
                    break
                async with _ended_by_loss_of(writer):
                    yield True
                return
        yield False


@asynccontextmanager
async def _ended_by_loss_of(writer: Writer) -> AsyncIterator[None]:
    """Cancel the body of the `async with` when the turn is lost, and raise StartRefused."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    lost = threading.Event()

    def cancel() -> None:
        lost.set()
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    writer.on_loss = cancel
    try:
        yield
    except asyncio.CancelledError:
        if lost.is_set():
            raise StartRefused(CACHE_LOST) from None
        raise
