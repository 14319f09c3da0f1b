"""Bounds the bytes of request bodies that arrive at the same time.

A granted byte takes up to 4 bytes of memory in Envoy and 3 in the picker: the body, the message to
the picker, and copies of both.
"""

import asyncio
from collections import deque
from typing import Final

GRANTED_BYTES: Final = 16 * 1024**2
MAX_WAITING: Final = 32
"""Maximum number of requests that wait for a grant. Envoy may buffer SEEN_BODY_BYTES of each."""
WAIT_SECONDS: Final = 30.0


class Grants:
    """Grants bytes in the order of the requests."""

    def __init__(self, budget_bytes: int = GRANTED_BYTES, max_waiting: int = MAX_WAITING) -> None:
        """Grant at most `budget_bytes` at a time, and let at most `max_waiting` requests wait."""
        self._budget = budget_bytes
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._granted = 0

    @property
    def granted(self) -> int:
        """Number of granted bytes."""
        return self._granted

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a grant."""
        return len(self._waiting)

    def must_wait(self, size: int) -> bool:
        """Return whether a request for `size` bytes must wait for its grant."""
        return bool(self._waiting) or self._granted + size > self._budget

    async def take(self, size: int, seconds: float = WAIT_SECONDS) -> bool:
        """Return whether the request for `size` bytes got a grant within `seconds`.

        If too many requests wait already, the result is False without a wait. Raises ValueError if
        `size` exceeds the whole budget. The caller must give every grant back.
        """
        if size > self._budget:
            raise ValueError(f"{size} bytes are more than the {self._budget} bytes of all grants")
        if not self.must_wait(size):
            self._granted += size
            return True
        if len(self._waiting) >= self._max_waiting:
            return False
        request = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        try:
            await asyncio.wait({request[1]}, timeout=seconds)
        except asyncio.CancelledError:
            if request[1].done():
                self.give_back(size)
            else:
                self._leave(request)
            raise
        if not request[1].done():
            self._leave(request)
            return False
        return True

    def give_back(self, size: int) -> None:
        """End a grant of `size` bytes."""
        self._granted -= size
        self._grant_waiting()

    def _leave(self, request: tuple[int, asyncio.Future[None]]) -> None:
        self._waiting.remove(request)
        self._grant_waiting()

    def _grant_waiting(self) -> None:
        while self._waiting and self._granted + self._waiting[0][0] <= self._budget:
            size, granted = self._waiting.popleft()
            self._granted += size
            granted.set_result(None)
