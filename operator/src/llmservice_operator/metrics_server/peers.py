"""Exchanges reports and wakes with the other metrics servers of the release.

A question waits in each of them until its next round ends. Every metrics server therefore knows the
report of every service some milliseconds after its learner, and answers for any service.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Final, NamedTuple, TypeVar

import aiohttp
from pydantic import TypeAdapter

from llmservice_operator import names
from llmservice_operator.api.load_report import LOAD_REPORTS, LoadReport
from llmservice_operator.api.wake import Wake
from llmservice_operator.cluster import Key
from llmservice_operator.sharding import Shares

logger = logging.getLogger(__name__)

WAIT_SECONDS: Final = 5.0
"""Time in seconds after which a metrics server answers even without a new round."""
WAKE_WAIT_SECONDS: Final = 30.0
TIMEOUT_SECONDS: Final = 2.0
"""Longest time in seconds that the connection and the transfer of an answer take."""
AGAIN_SECONDS: Final = 0.5
"""Shortest time in seconds between two questions."""
SEARCH_SECONDS: Final = 1.0
"""Time in seconds between two looks at the members."""
SHORTEST_ROUND_SECONDS: Final = 0.001
LONGEST_ANSWER_BYTES: Final = 64 * 2**20

WAKES: Final = TypeAdapter(dict[str, Wake])

AskReports = Callable[[str, float, Collection[str]], Awaitable[Mapping[Key, LoadReport] | None]]
"""Asks a metrics server for its reports of a later round than at a time, in seconds since 1970,
about the services of some learners. None without an answer."""

AskWakes = Callable[[str], Awaitable[Mapping[Key, Wake] | None]]
"""Asks a metrics server for the services that must be woken, as soon as there is one. None without
an answer."""

_Found = TypeVar("_Found", LoadReport, Wake)


class _Tasks(NamedTuple):
    reports: asyncio.Task[None]
    wakes: asyncio.Task[None]


class Peers:
    """Asks all other metrics servers, and passes on their answers."""

    def __init__(
        self,
        shares: Callable[[], Shares],
        ask_reports: AskReports,
        ask_wakes: AskWakes,
        on_reports: Callable[[Mapping[Key, LoadReport]], None],
        on_wakes: Callable[[str, Mapping[Key, Wake]], Coroutine[None, None, None]],
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        """`on_wakes` is called with the name of a metrics server and all of its wakes."""
        self.silent: set[str] = set()
        """The other metrics servers that did not answer the last time."""
        self._asked: set[str] = set()
        self._shares = shares
        self._ask_reports = ask_reports
        self._ask_wakes = ask_wakes
        self._on_reports = on_reports
        self._on_wakes = on_wakes
        self._again_seconds = again_seconds
        self._tasks: dict[str, _Tasks] = {}

    @property
    def are_asked(self) -> bool:
        """Whether each of the others has answered, or has failed to."""
        return self._asked >= set(self._shares().others)

    async def run(self) -> None:
        """Ask for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                others = set(self._shares().others)
                for gone in self._tasks.keys() - others:
                    for task in self._tasks.pop(gone):
                        task.cancel()
                    self.silent.discard(gone)
                    self._asked.discard(gone)
                    await self._on_wakes(gone, {})
                for new in others - self._tasks.keys():
                    self._tasks[new] = _Tasks(
                        tasks.create_task(self._keep_asking(new)),
                        tasks.create_task(self._watch_wakes(new)),
                    )
                await asyncio.sleep(SEARCH_SECONDS)

    async def _keep_asking(self, member: str) -> None:
        known_until = 0.0
        while True:
            # The followers know the loads of a learner that does not answer.
            learners = {member, *self.silent}
            found = await self._ask_reports(member, known_until, learners)
            self._asked.add(member)
            if found is None:
                if member not in self.silent:
                    logger.warning("the metrics server at %s does not answer", member)
                self.silent.add(member)
            else:
                self.silent.discard(member)
                self._on_reports(found)
                known_until = max((it.at for it in found.values()), default=known_until)
            await asyncio.sleep(self._again_seconds)

    async def _watch_wakes(self, member: str) -> None:
        while True:
            found = await self._ask_wakes(member) if self._shares().are_divided else None
            if found:
                await self._on_wakes(member, found)
            await asyncio.sleep(self._again_seconds)
            # While the services must be woken, the next answer comes at once.
            await self._on_wakes(member, {})


class PeerClient:
    """HTTP client of the other metrics servers. The caller must close it."""

    def __init__(self, headers: Callable[[], Mapping[str, str]] = dict) -> None:
        """`headers` returns the headers of a request, with the token of this process."""
        self._headers = headers
        self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        await self._session.close()

    async def reports(
        self, member: str, known_until: float, learners: Collection[str]
    ) -> Mapping[Key, LoadReport] | None:
        """Return the reports of the next round; see AskReports. They are empty if no round ends
        in time.
        """
        query = [
            ("at", f"{known_until + SHORTEST_ROUND_SECONDS:f}"),
            ("wait", f"{WAIT_SECONDS:g}"),
            *(("learner", each) for each in sorted(learners)),
        ]
        return await self._read(member, names.LOAD_REPORTS_PATH, query, WAIT_SECONDS, LOAD_REPORTS)

    async def wakes(self, member: str) -> Mapping[Key, Wake] | None:
        """Return the services that must be woken; see AskWakes."""
        query = [("wait", f"{WAKE_WAIT_SECONDS:g}"), ("own", "true")]
        return await self._read(member, names.WAKES_PATH, query, WAKE_WAIT_SECONDS, WAKES)

    async def _read(
        self,
        member: str,
        path: str,
        query: list[tuple[str, str]],
        wait_seconds: float,
        form: TypeAdapter[dict[str, _Found]],
    ) -> Mapping[Key, _Found] | None:
        """Return what a metrics server answers, by service; None without a valid answer."""
        timeout = aiohttp.ClientTimeout(
            total=wait_seconds + TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS
        )
        text = bytearray()
        try:
            async with self._session.get(
                f"http://{member}{path}",
                params=query,
                headers=self._headers(),
                allow_redirects=False,
                timeout=timeout,
            ) as answer:
                answer.raise_for_status()
                async for chunk in answer.content.iter_any():
                    text += chunk
                    if len(text) > LONGEST_ANSWER_BYTES:
                        raise aiohttp.ClientPayloadError("the answer is too long")
            found = form.validate_json(bytes(text))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger.debug("the metrics server at %s does not answer: %s", member, error)
            return None
        return {names.key_of(text): it for text, it in found.items()}
