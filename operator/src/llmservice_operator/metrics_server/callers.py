"""Admits the callers of the load reports by their ServiceAccounts.

A caller sends a token of its ServiceAccount that was made for the metrics servers only, so that it
gives no access to anything else. The API server checks each token (TokenReview). The answers are
reused, so that neither a busy nor an absent API server stops the scaling.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from llmservice_operator import names
from llmservice_operator.errors import ClusterError
from llmservice_operator.metrics_server.operator_lease import OperatorLease

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 60.0
"""Time in seconds for which an accepted token is not checked again."""
KEPT_SECONDS: Final = 900.0
"""Time in seconds for which a token stays accepted after its last successful check, if the API
server does not answer."""
REFUSED_SECONDS: Final = 10.0
"""Time in seconds for which a refused token is not checked again."""
REVIEW_SECONDS: Final = 2.0
"""Longest time in seconds that a check takes. The operator waits three seconds for its answer."""
MOST_TOKENS: Final = 1000
"""Largest number of tokens whose last check is remembered."""
UNKNOWN_PER_SECOND: Final = 50.0
"""Largest rate at which tokens are checked that were not accepted lately, so that nobody can load
the API server through this process."""
UNKNOWN_PER_ADDRESS: Final = 10.0
"""Largest rate at which such tokens of one address are checked, so that no pod can keep the others
from a check. KEDA sends the tokens of all namespaces from one address."""
BURST_SECONDS: Final = 1.0
"""Time in seconds whose share of such checks may begin at once."""
MOST_ADDRESSES: Final = 1000
"""Largest number of addresses whose rate is remembered."""

Review = Callable[[str], Awaitable[str | None]]
"""Returns the user name of a valid token; None for any other token. Raises ClusterError."""


class Unchecked(Exception):
    """A token cannot be checked now. The text says why."""


@dataclass
class _Rate:
    """Limits how often something may happen."""

    per_second: float
    next_at: float = 0.0

    def take(self, now: float) -> bool:
        """Return whether it may happen now, and count it if so."""
        at = max(self.next_at, now - BURST_SECONDS)
        if at > now:
            return False
        self.next_at = at + 1 / self.per_second
        return True


@dataclass
class _Known:
    """The last check of a token."""

    account: str | None
    checked_at: float
    renew_at: float


class Tokens:
    """Checks tokens, and remembers the results."""

    def __init__(self, review: Review, clock: Callable[[], float] = time.monotonic) -> None:
        self._review = review
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        """The checks by the digests of their tokens. The one that was used last comes last."""
        self._checks: dict[bytes, asyncio.Task[str | None]] = {}
        self._rate = _Rate(UNKNOWN_PER_SECOND)
        self._rates: OrderedDict[str, _Rate] = OrderedDict()
        """The rates by address. The address that was limited last comes last."""

    async def account(self, token: str, address: str) -> str | None:
        """Return the user name of a token, which a caller at `address` sent; None if the API server
        refuses the token.

        A token that was accepted lately has its result at once, and is checked meanwhile if the
        last check is old. Raises Unchecked for any other token that cannot be checked.
        """
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            if known.account is None and now < known.renew_at:
                return None
            if known.account is not None and now < known.checked_at + KEPT_SECONDS:
                if now >= known.renew_at:
                    known.renew_at = now + REFUSED_SECONDS
                    self._check(digest, token)
                return known.account
        if digest not in self._checks:
            self._limit(address, now)
        try:
            return await asyncio.shield(self._check(digest, token))
        except (ClusterError, TimeoutError) as error:
            raise Unchecked(
                "the token cannot be checked now, and the log of the metrics server says why: send"
                " the request again later"
            ) from error

    async def close(self) -> None:
        """End all checks."""
        for check in self._checks.values():
            check.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)

    def _limit(self, address: str, now: float) -> None:
        """Count a check of an unknown token. Raises Unchecked if there are too many."""
        rate = self._rates.setdefault(address, _Rate(UNKNOWN_PER_ADDRESS))
        self._rates.move_to_end(address)
        if len(self._rates) > MOST_ADDRESSES:
            self._rates.popitem(last=False)
        if not rate.take(now) or not self._rate.take(now):
            raise Unchecked("too many unknown tokens are checked now: send the request again later")

    def _check(self, digest: bytes, token: str) -> asyncio.Task[str | None]:
        check = self._checks.get(digest)
        if check is None:
            check = self._checks[digest] = asyncio.create_task(self._ask(digest, token))
            check.add_done_callback(lambda done: self._ended(digest, done))
        return check

    async def _ask(self, digest: bytes, token: str) -> str | None:
        async with asyncio.timeout(REVIEW_SECONDS):
            account = await self._review(token)
        now = self._clock()
        seconds = REFUSED_SECONDS if account is None else FRESH_SECONDS
        self._known[digest] = _Known(account, now, now + seconds)
        self._known.move_to_end(digest)
        if len(self._known) > MOST_TOKENS:
            self._known.popitem(last=False)
        return account

    def _ended(self, digest: bytes, check: asyncio.Task[str | None]) -> None:
        del self._checks[digest]
        # Nobody may wait for the check of a token that stays accepted.
        error = None if check.cancelled() else check.exception()
        if error is not None:
            logger.warning("a token of a caller cannot be checked: %s", str(error) or "no answer")


@dataclass(frozen=True)
class Readers:
    """The ServiceAccounts that may read load reports, each as NAMESPACE/NAME."""

    of_all: frozenset[str]
    """Accounts that may read all reports. If it is empty, everybody may read everything."""
    of_one: str | None = None
    """Account that may read single reports, because KEDA sends its token. Without a namespace, the
    account is that of this name in the namespace of the report's service."""
    one_is_open: bool = False
    """Whether everybody may read single reports, because KEDA sends no token."""

    def may_read(self, account: str, namespace: str | None) -> bool:
        """Return whether the account may read a report in this namespace; None means all
        reports.
        """
        if account in self.of_all:
            return True
        if namespace is None or self.of_one is None:
            return False
        return account == (self.of_one if "/" in self.of_one else f"{namespace}/{self.of_one}")


def admission(
    readers: Readers, tokens: Tokens, operators: OperatorLease | None = None
) -> Middleware:
    """Return a middleware that refuses the requests of all other callers, with a sentence.

    Requests without a token are answered while an operator leads that sends none.
    """

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        namespace = request.match_info.get("namespace")
        if not readers.of_all or (namespace is not None and readers.one_is_open):
            return await handler(request)
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        # aiohttp decodes a header that is no UTF-8 to text that cannot be encoded again.
        if scheme.lower() != "bearer" or not token.strip() or not token.isascii():
            if operators is not None and await operators.holder_sends_no_token():
                return await handler(request)
            return _refusal(
                401,
                "the request has no token: send a token of a ServiceAccount for the audience"
                f" {names.METRICS_SERVER_AUDIENCE} as Authorization: Bearer TOKEN",
            )
        try:
            user = await tokens.account(token.strip(), request.remote or "")
        except Unchecked as error:
            return _refusal(503, str(error))
        if user is None:
            return _refusal(
                401,
                "the token is not valid: send one that has not expired, for the audience"
                f" {names.METRICS_SERVER_AUDIENCE}",
            )
        account = user.removeprefix(ACCOUNT_PREFIX).replace(":", "/", 1)
        if not user.startswith(ACCOUNT_PREFIX) or not readers.may_read(account, namespace):
            return _refusal(403, f"{user} may not read this")
        return await handler(request)

    return admit


ACCOUNT_PREFIX: Final = "system:serviceaccount:"
"""Prefix of the user name of a ServiceAccount, before NAMESPACE:NAME."""


def _refusal(status: int, message: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.json_response({"message": message}, status=status, headers=headers)
