"""The tasks of a process. The process exits when one of them fails."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


class Tasks:
    """The concurrent tasks of a process, and the signals and failures that make it exit."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Set once the process must exit, because a signal arrived or a task failed."""
        self.failed = False
        """Whether a task failed."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task. When it fails, the process exits."""
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._check)
        self._tasks.append(task)
        return task

    def heed_signals(self) -> None:
        """Set `stop` on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)

    async def cancel(self, *tasks: asyncio.Task[None]) -> None:
        """Cancel these tasks, and wait until they have ended."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def cancel_all(self) -> None:
        """Cancel every task that was started, and wait until they have ended."""
        await self.cancel(*self._tasks)

    def _check(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            logger.critical("%s broke; the process ends", task.get_name(), exc_info=error)
            self.failed = True
            self.stop.set()
