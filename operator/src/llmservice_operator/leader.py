"""Leader election. Of several processes, the holder of the Lease is the leader, and the other
processes are standbys.

Time is measured on the monotonic clock of this process. A Lease has expired when it has not changed
for its duration on that clock. Wall clocks that differ or jump therefore cannot lead to two
leaders.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from llmservice_operator.errors import ClusterError, Conflict, NotFound

logger = logging.getLogger(__name__)


class LeaseStore(Protocol):
    """Storage of the Lease. Both writes raise Conflict when another process was faster."""

    async def read_lease(self) -> dict[str, Any] | None: ...

    async def create_lease(self, spec: Mapping[str, Any]) -> dict[str, Any]: ...

    async def replace_lease(
        self, lease: Mapping[str, Any], spec: Mapping[str, Any]
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LeaderSettings:
    """Durations of the election, in seconds. The defaults are those of Kubernetes' own components.

    The holder gives up the Lease after two thirds of `lease_seconds` without a renewal, 10 s by
    default. Another process may take the Lease only when it has not changed for `lease_seconds`.
    """

    lease_seconds: int = 15
    retry_seconds: float = 2.0

    @property
    def renew_deadline_seconds(self) -> float:
        return self.lease_seconds * 2 / 3

    @property
    def request_seconds(self) -> float:
        """Longest time in seconds that one attempt to acquire, renew or release the Lease may take,
        so that a stalled request cannot last longer than the renew deadline.
        """
        return self.lease_seconds / 3


def exit_process() -> None:
    """Exit without a cleanup, because its writes could conflict with the next leader."""
    os._exit(1)


class Leader:
    def __init__(
        self,
        store: LeaseStore,
        identity: str,
        settings: LeaderSettings | None = None,
        *,
        on_lost: Callable[[], None] = exit_process,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.elected = asyncio.Event()
        self._store = store
        self._identity = identity
        self._settings = settings or LeaderSettings()
        self._on_lost = on_lost
        self._monotonic = monotonic
        self._now = now
        self._sleep = sleep
        self._lease: dict[str, Any] | None = None
        """The Lease as it was last read or written; None while its state is not known."""
        self._taken_by: str | None = None
        """Reason why an elected process no longer holds the Lease; None while it may hold it."""
        self._seen_at = 0.0
        self._expires_at = 0.0
        self._renewed_at = 0.0

    @property
    def holder(self) -> str:
        """Identity of the holder when the Lease was last read or written. It is empty if there was
        no holder, and while the state of the Lease is not known.
        """
        spec = self._lease["spec"] if self._lease is not None else {}
        return str(spec.get("holderIdentity") or "")

    def is_holding(self) -> bool:
        """Return whether this process may write: it is elected, its last renewal is within the
        deadline, and no other process is known to have changed the Lease.

        The result is also False in a process that was suspended past the deadline and has just
        resumed, even before its election loop runs again.
        """
        return self.elected.is_set() and self._lease is not None and not self._is_overdue()

    async def run(self) -> None:
        """Wait for the Lease, then renew it until it is lost. Then call `on_lost` and return.

        A Lease that was deleted or that names another holder is lost immediately, because another
        process may already be the leader.
        """
        logger.info("waiting for the lease as %s", self._identity)
        while not await self._attempt(self._acquire):
            await self._sleep(self._until_next_attempt())
        logger.info("acquired the lease as %s", self._identity)
        self.elected.set()
        while True:
            await self._sleep(self._settings.retry_seconds)
            if await self._attempt(self._renew):
                continue
            if self._taken_by is None and not self._is_overdue():
                continue
            why = self._taken_by or f"not renewed for {self._renewal_age():.1f} s"
            self._lease = None
            logger.critical("lost the lease: %s", why)
            self._on_lost()
            return

    async def release(self) -> None:
        """Release the Lease, so that the next leader does not have to wait until it expires."""
        if self._lease is None or not self.is_holding():
            return
        self.elected.clear()
        spec = {**self._lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                await self._store.replace_lease(self._lease, spec)
        except (ClusterError, TimeoutError) as error:
            logger.warning("the lease was not released and will expire instead: %s", error)
        else:
            logger.info("released the lease")

    async def _attempt(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """Run a step and return its result; return False if it fails or times out, because the
        caller retries it.
        """
        seconds = self._settings.request_seconds
        if self.elected.is_set():
            left = self._settings.renew_deadline_seconds - self._renewal_age()
            seconds = max(0.0, min(seconds, left))
        try:
            async with asyncio.timeout(seconds):
                return await step()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The request was cancelled, not this task. The step counts as failed.
            return False
        except (Conflict, NotFound):
            self._lease = None
            return False
        except (ClusterError, TimeoutError) as error:
            logger.warning("the lease could not be written: %s", str(error) or "timed out")
            return False

    async def _acquire(self) -> bool:
        lease = await self._store.read_lease()
        asked_at = self._monotonic()
        if lease is None:
            return self._hold(await self._store.create_lease(self._spec(None)), asked_at)
        if self._lease is None or lease["spec"] != self._lease["spec"]:
            self._seen_at = self._monotonic()
        self._lease = lease
        holder = lease["spec"].get("holderIdentity")
        duration = lease["spec"].get("leaseDurationSeconds") or self._settings.lease_seconds
        self._expires_at = self._seen_at + duration
        expired = self._monotonic() >= self._expires_at
        # If the Lease names this process, an earlier write succeeded although its response was
        # lost.
        if holder and holder != self._identity and not expired:
            return False
        return self._hold(await self._store.replace_lease(lease, self._spec(lease)), asked_at)

    def _until_next_attempt(self) -> float:
        """Return the seconds until the next retry, or until the Lease expires if that is sooner."""
        left = self._expires_at - self._monotonic()
        return min(left, self._settings.retry_seconds) if left > 0 else self._settings.retry_seconds

    async def _renew(self) -> bool:
        asked_at = self._monotonic()
        if self._lease is not None:
            try:
                return self._hold(await self._prolong(self._lease), asked_at)
            except (Conflict, NotFound):
                self._lease = None
        # Another process changed or deleted the Lease, or the response to the last write was lost.
        lease = await self._store.read_lease()
        if lease is None:
            self._taken_by = "it was deleted"
            return False
        holder = lease["spec"].get("holderIdentity")
        if holder != self._identity:
            self._taken_by = f"its holder is {holder or 'nobody'}"
            return False
        return self._hold(await self._prolong(lease), asked_at)

    async def _prolong(self, lease: dict[str, Any]) -> dict[str, Any]:
        # Any client may have changed the duration for which standbys wait after a crash.
        spec = {
            **lease["spec"],
            "leaseDurationSeconds": self._settings.lease_seconds,
            "renewTime": self._timestamp(),
        }
        return await self._store.replace_lease(lease, spec)

    def _hold(self, lease: dict[str, Any], asked_at: float) -> bool:
        # The renewal counts from the time before the request, because the API server may have
        # stored the renewed Lease at any time from then on.
        self._lease = lease
        self._renewed_at = asked_at
        return True

    def _spec(self, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        transitions = 0 if previous is None else previous["spec"].get("leaseTransitions", 0) + 1
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._settings.lease_seconds,
            "acquireTime": self._timestamp(),
            "renewTime": self._timestamp(),
            "leaseTransitions": transitions,
        }

    def _is_overdue(self) -> bool:
        return self._renewal_age() >= self._settings.renew_deadline_seconds

    def _renewal_age(self) -> float:
        return self._monotonic() - self._renewed_at

    def _timestamp(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
