"""Runs the other processes of the pod, and starts each of them again when it ends."""

import asyncio
import fcntl
import logging
import os
import signal
import stat
import struct
import termios
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Longest time in seconds between the end of a process and its next start. Each start doubles the
time."""

WELL_SECONDS: Final = 30.0
"""Run time in seconds after which the pause before the next start is short again."""

END_SECONDS: Final = 5.0
"""Time in seconds between SIGTERM and SIGKILL."""

UNREAD_SECONDS: Final = 15.0
"""Time in seconds after which a process that leaves its input unread is considered hung."""

FIRST_READ_SECONDS: Final = 60.0
"""The same time for a process that has read nothing yet, because it starts."""


class Process(Protocol):
    """The part of `asyncio.subprocess.Process` that is used here."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    @property
    def stdin(self) -> asyncio.StreamWriter | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


Start = Callable[[], Awaitable[Process]]
"""Starts a process whose standard input is `stdin`."""


def program(*command: str) -> Start:
    """Return a function that starts a program with these arguments."""

    async def start() -> Process:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            # A signal to this process group, as from a terminal, must not end the new process
            # before the drain.
            start_new_session=True,
        )

    return start


def unread_size(stdin: asyncio.StreamWriter) -> int:
    """Return the size of the input that a process has not read yet. The kernel adds its own data
    to each part, so that only 0 and the sign of a change are exact.
    """
    transport = stdin.transport
    end = transport.get_extra_info("socket") or transport.get_extra_info("pipe")
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(end.fileno()).st_mode)
        question = termios.FIONREAD if is_pipe else termios.TIOCOUTQ
        answer = fcntl.ioctl(end.fileno(), question, bytes(4))
    except (OSError, ValueError):
        return 0  # the process has ended
    (in_kernel,) = struct.unpack("i", answer)
    return int(in_kernel) + transport.get_write_buffer_size()


@dataclass
class ChildProcess:
    """A process that runs until `end` is called."""

    name: str
    start: Start
    before_start: Callable[[], None] = lambda: None
    """Called before each start."""
    first_line: Callable[[], bytes | None] = lambda: None
    """Returns the first line of the process's input after each start."""
    starts: int = 0
    _process: Process | None = None
    _is_ending: bool = False
    _unread_since: float | None = None
    _unread: int = 0
    """Size of the unread input at the last look, at least 1 after a line."""
    _has_read: bool = False

    @property
    def restarts(self) -> int:
        return max(self.starts - 1, 0)

    @property
    def pid(self) -> int | None:
        """Number of the process; None before its first start."""
        return None if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, or the negative number of a signal; None while the process runs."""
        return None if self._process is None else self._process.returncode

    @property
    def is_ending(self) -> bool:
        """Whether `end` was called."""
        return self._is_ending

    @property
    def is_running(self) -> bool:
        return self._process is not None and self.status is None

    async def run(self) -> None:
        """Keep the process running until `end` is called."""
        pause = FIRST_PAUSE_SECONDS
        while not self._is_ending:
            began = time.monotonic()
            await self._start()
            assert self._process is not None
            status = await self._process.wait()
            if self._is_ending:
                return
            if time.monotonic() - began > WELL_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error(
                "%s ended with status %d; it starts again in %.1f s", self.name, status, pause
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _start(self) -> None:
        self.before_start()
        self._process = await self.start()
        if self._is_ending:
            self._process.send_signal(signal.SIGKILL)
            return
        self.starts += 1
        self._unread_since, self._unread, self._has_read = None, 0, False
        if line := self.first_line():
            self.write(line)

    def write(self, line: bytes) -> None:
        """Write a line to the input of the process.

        While the pipe to the process is full, drop the new line. A process that has read nothing
        for UNREAD_SECONDS is killed, and starts again. The pipe holds the lines of minutes, so the
        process is not judged by whether it is full.
        """
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        self._note_reads(process.stdin)
        if process.stdin.transport.get_write_buffer_size() == 0:
            process.stdin.write(line)
            self._unread = max(unread_size(process.stdin), 1)
        if self._unread_since is None:
            return
        longest = UNREAD_SECONDS if self._has_read else FIRST_READ_SECONDS
        if time.monotonic() - self._unread_since > longest:
            logger.error("%s does not read its input; it is killed", self.name)
            process.send_signal(signal.SIGKILL)

    def _note_reads(self, stdin: asyncio.StreamWriter) -> None:
        """Note whether the process has read anything since the last look."""
        unread = unread_size(stdin)
        if unread < self._unread:
            self._has_read = True
            self._unread_since = None
        if unread and self._unread_since is None:
            self._unread_since = time.monotonic()
        self._unread = unread

    async def end(self, seconds: float = END_SECONDS) -> None:
        """End the process, and start it no more. After `seconds`, it is killed."""
        self._is_ending = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
