"""The life of one server: listen, load, serve, drain, exit."""

import asyncio
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import REGISTRY

from llmservice_server.app import attach_engine_app, create_app
from llmservice_server.drain import drain
from llmservice_server.engine import Engine
from llmservice_server.failures import (
    Failure,
    StartRefused,
    classify,
    facts_of,
    read_facts,
    write_termination_message,
)
from llmservice_server.gate import InFlight
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.listener import Listener, bind
from llmservice_server.loading import load_engine
from llmservice_server.logs import ENGINE_ERROR_FILE
from llmservice_server.management import create_management_app
from llmservice_server.metrics import ServerMetrics
from llmservice_server.settings import ServerSettings

logger = logging.getLogger(__name__)

_ENGINE_CHECK_SECONDS = 0.1
_KILLED = Failure(
    "EngineDied",
    "The engine process ended without a word, as when the kernel kills it for lack of memory. "
    "If it happens again, raise spec.resources.limits.memory.",
)
_LAST_ANSWERS_SECONDS = 1.0
"""How long requests that the engine's death broke may take to hear of it."""


class Server:
    """One server, from its first listener to its exit code."""

    def __init__(self, command_line: Sequence[str], settings: ServerSettings) -> None:
        self._command_line = command_line
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._in_flight = InFlight()
        self._engine_error_file = Path(
            tempfile.gettempdir(), f"llmservice-engine-error.{os.getpid()}"
        )

    async def run(self) -> int:
        """Serve until told to stop; return the exit code.

        Raises PortUnavailable when a port cannot be bound.
        """
        os.environ[ENGINE_ERROR_FILE] = str(self._engine_error_file)
        terminated = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, terminated.set)
        app = create_app(self._lifecycle, ServerMetrics(REGISTRY, self._lifecycle), self._in_flight)
        management = Listener(
            create_management_app(self._lifecycle, REGISTRY), bind(self._settings.management_port)
        )
        api = Listener(app, bind(self._settings.api_port))
        management.start()
        api.start()
        try:
            return await self._load_and_serve(app, terminated)
        finally:
            await api.stop()
            await management.stop()
            _kill_children()
            self._engine_error_file.unlink(missing_ok=True)

    async def _load_and_serve(self, app: object, terminated: asyncio.Event) -> int:
        loading = asyncio.ensure_future(self._load(app))
        stopping = asyncio.ensure_future(terminated.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            # Nobody is being served, so there is nothing to wait for. What still runs in a thread
            # ends with the process.
            logger.info("told to stop while loading")
            return 0
        try:
            engine = loading.result()
        except Exception as error:
            return self._fail(error, "LoadFailed")
        return await self._serve(engine, terminated)

    async def _load(self, app: object) -> Engine:
        engine = await load_engine(self._command_line, self._lifecycle)
        self._lifecycle.enter(Phase.WARMING_UP)
        engine_app = await engine.build_app()
        await engine.warm_up()
        attach_engine_app(app, engine_app)  # type: ignore[arg-type]
        self._lifecycle.enter(Phase.READY)
        logger.info("ready: %s", self._lifecycle.report())
        return engine

    async def _serve(self, engine: Engine, terminated: asyncio.Event) -> int:
        died = asyncio.Event()
        watching = asyncio.ensure_future(_watch(engine, died))
        stopping = asyncio.ensure_future(terminated.wait())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not died.is_set():
            await drain(self._lifecycle, self._in_flight, self._settings, died)
        if died.is_set():
            code = self._fail(None, "EngineDied")
            await self._in_flight.wait_until_none(_LAST_ANSWERS_SECONDS)
            return code
        watching.cancel()
        await asyncio.to_thread(engine.shutdown)
        return 0

    def _fail(self, error: BaseException | None, unrecognised: str) -> int:
        """Report why this server ends, everywhere somebody may look; return the exit code."""
        if isinstance(error, StartRefused):
            failure = error.failure
        else:
            # The engine process knows why it ended; to us it only says that it did.
            facts = read_facts(self._engine_error_file) or (facts_of(error) if error else [])
            failure = classify(facts, unrecognised) if facts else _KILLED
        self._lifecycle.fail(failure.message)
        logger.error("%s: %s", failure.reason, failure.message, exc_info=error)
        write_termination_message(failure, self._settings.termination_log)
        return 1


async def _watch(engine: Engine, died: asyncio.Event) -> None:
    """Set the event soon after the engine has died."""
    while not engine.has_died:  # noqa: ASYNC110 - vLLM keeps a flag and calls nobody
        await asyncio.sleep(_ENGINE_CHECK_SECONDS)
    died.set()


def _kill_children() -> None:
    """Leave no engine process behind, whatever state it is in."""
    for child in multiprocessing.active_children():
        child.kill()
