"""Drains the server: it finishes the requests in progress before it exits."""

import asyncio
import logging

from llmservice_server.exchange import Cut
from llmservice_server.gate import InFlight
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.listener import Listener
from llmservice_server.settings import ServerSettings

logger = logging.getLogger(__name__)


_CUT = Cut("drain_timeout", "this replica had to stop; send the request again", 503)
_QUIET_SECONDS = 0.5
"""Time in seconds without a request, after which the drain is complete.

A client whose response began before the drain does not know that its connection will close. If the
client sends its next request right away, it still gets a response, whose headers announce the
close.
"""


async def drain(
    lifecycle: Lifecycle,
    in_flight: InFlight,
    listener: Listener,
    settings: ServerSettings,
    engine_lost: asyncio.Event,
) -> None:
    """Serve the last requests, and return when no client waits or the drain timeout is over.

    For the first `pre_stop_seconds`, new requests are served as before, because they arrive until
    every proxy has noticed that this replica is not ready. After that, new requests are refused. If
    the engine is lost, no request can be finished, so the function returns immediately.
    """
    # Set before the phase: the management port runs on another thread, and whoever reads there that
    # a server without pre-stop time drains must find that it refuses.
    if settings.pre_stop_seconds == 0:
        lifecycle.accepts_requests = False
    lifecycle.enter(Phase.DRAINING)
    logger.info("draining; %d requests in flight", in_flight.count)
    listener.let_idle_go()
    if await _happens_within(engine_lost, settings.pre_stop_seconds):
        return
    lifecycle.accepts_requests = False
    waiting = asyncio.ensure_future(
        _serve_the_last(in_flight, listener, settings.drain_timeout_seconds)
    )
    dying = asyncio.ensure_future(engine_lost.wait())
    await asyncio.wait((waiting, dying), return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, dying):
        task.cancel()


async def _serve_the_last(in_flight: InFlight, listener: Listener, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await in_flight.wait_until_quiet(_QUIET_SECONDS)
            await listener.wait_until_sent()
    except TimeoutError:
        logger.warning("the drain timeout is over; cutting %d requests", in_flight.count)
        await in_flight.cut_all(_CUT)
    else:
        logger.info("drained")


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
