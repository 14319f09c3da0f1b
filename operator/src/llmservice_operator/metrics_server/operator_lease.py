"""Tells whether the leading operator is of a release that sends no token.

While an upgrade replaces the operator and the metrics servers, an operator of release 0.1 may ask a
metrics server of this release. Its services must not lose their scaling. Its Lease lacks an
annotation that the operators of this release write. This also holds after a rollback of the
operator alone, and it leaves no time in which an operator of this release leads and requests
without a token are accepted.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.errors import ClusterError

logger = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 5.0
"""Shortest time in seconds between two reads of the Lease. Only a request without a token causes a
read."""
READ_SECONDS: Final = 2.0
"""Longest time in seconds that a read takes. The operator waits three seconds for its answer."""


class OperatorLease:
    """The Lease of the operators, as it was when it was last read."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Manifest | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._read_at = -AGAIN_SECONDS
        self._is_earlier = False

    async def holder_sends_no_token(self) -> bool:
        """Return whether an operator leads that sends no token.

        If there is no leader, or the Lease cannot be read, the last result is returned. It is False
        at the start.
        """
        if self._clock() - self._read_at < AGAIN_SECONDS:
            return self._is_earlier
        self._read_at = self._clock()
        try:
            async with asyncio.timeout(READ_SECONDS):
                lease = await self._read()
        except (ClusterError, TimeoutError) as error:
            logger.warning("the operator's Lease cannot be read: %s", str(error) or "no answer")
            return self._is_earlier
        holder = lease["spec"].get("holderIdentity") if lease is not None else None
        if lease is None or not holder:
            return self._is_earlier
        annotations = lease["metadata"].get("annotations") or {}
        is_earlier = bool(annotations.get(names.TOKEN_SENDER_ANNOTATION) != holder)
        if is_earlier and not self._is_earlier:
            logger.warning(
                "the leading operator %s sends no token, because its release is older: requests"
                " without a token are answered until the operator is upgraded",
                holder,
            )
        self._is_earlier = is_earlier
        return is_earlier
