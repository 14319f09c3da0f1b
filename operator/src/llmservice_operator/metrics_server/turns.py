"""Bounds the requests that run at the same time, so that no tenant's pods delay those of another.

A request waits for its turn before its time limit begins. A namespace has a share of the turns.
Pods that did not answer the last time have turns of their own, because they keep them until the
time limit.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

TOGETHER: Final = 512
OF_A_NAMESPACE: Final = 32
SILENT_TOGETHER: Final = 256
SILENT_OF_A_NAMESPACE: Final = 8


class Turns:
    """A number of turns, of which each namespace takes only a part at the same time."""

    def __init__(self, together: int, of_a_namespace: int) -> None:
        self._together = asyncio.Semaphore(together)
        self._of_a_namespace = of_a_namespace
        self._namespaces: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Only of the namespaces that have a turn or wait for one."""

    @asynccontextmanager
    async def turn(self, namespace: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it in the context."""
        own = self._namespaces.get(namespace)
        if own is None:
            own = self._namespaces[namespace] = asyncio.Semaphore(self._of_a_namespace)
        # The requests that wait for their namespace must not take a turn of the others.
        async with own, self._together:
            yield


class FairTurns:
    """Turns of the pods that answered the last time, and of those that did not."""

    def __init__(self) -> None:
        self._usual = Turns(TOGETHER, OF_A_NAMESPACE)
        self._silent = Turns(SILENT_TOGETHER, SILENT_OF_A_NAMESPACE)

    def turn(self, namespace: str, *, answers: bool) -> AbstractAsyncContextManager[None]:
        """Return the turn of a pod, given whether it answered the last time."""
        return (self._usual if answers else self._silent).turn(namespace)
