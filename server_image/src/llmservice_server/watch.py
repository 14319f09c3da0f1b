"""Detects that the engine has died or hangs."""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum

from llmservice_server.lifecycle import Lifecycle, Phase

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.1


class Loss(Enum):
    """Ways in which an engine is lost for good."""

    DIED = "died"
    HANGS = "hangs"


class EngineWatch:
    """Checks the engine ten times a second and updates the lifecycle."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        has_died: Callable[[], bool],
        stalled_seconds: Callable[[], float],
        hang_seconds: float,
    ) -> None:
        self._lifecycle = lifecycle
        self._has_died = has_died
        self._stalled_seconds = stalled_seconds
        self._hang_seconds = hang_seconds
        self.lost = asyncio.Event()
        """Set when the engine is lost, so that no caller waits for it any longer."""
        self.loss: Loss | None = None

    async def run(self) -> None:
        """Watch until the engine is lost."""
        while self.loss is None:
            if self._has_died():
                self.loss = Loss.DIED
            else:
                self._look_for_a_hang()
                await asyncio.sleep(_CHECK_SECONDS)
        self.lost.set()

    def _look_for_a_hang(self) -> None:
        """Report a hang to the probes. A hang may end, so it is a loss only during a drain."""
        stalled = self._stalled_seconds()
        is_stalled = stalled > self._hang_seconds
        if is_stalled != self._lifecycle.is_stalled:
            self._lifecycle.is_stalled = is_stalled
            if is_stalled:
                logger.error("the engine has made no step for %.1f seconds", stalled)
            else:
                logger.warning("the engine makes steps again")
        if is_stalled and self._lifecycle.phase is Phase.DRAINING:
            # The kubelet restarts a container that is not alive, so no request can be finished.
            self.loss = Loss.HANGS
