"""Runs the other processes of the pod, and starts each of them again when it ends."""

import asyncio
import logging
import signal
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
        self._unread_since = None
        if line := self.first_line():
            self.write(line)

    def write(self, line: bytes) -> None:
        """Write a line to the input of the process.

        While the process has not read the previous line, drop the new one. A process that has read
        nothing for UNREAD_SECONDS is killed, and starts again.
        """
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        if process.stdin.transport.get_write_buffer_size() == 0:
            self._unread_since = None
            process.stdin.write(line)
            return
        now = time.monotonic()
        self._unread_since = self._unread_since or now
        if now - self._unread_since > UNREAD_SECONDS:
            logger.error("%s does not read its input; it is killed", self.name)
            process.send_signal(signal.SIGKILL)

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
