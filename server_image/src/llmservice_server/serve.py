"""Runs one server from start to exit: it listens, loads, serves, drains and exits."""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import REGISTRY

from llmservice_server.adapter_files import adapters_folder
from llmservice_server.adapters import AdapterFile, Adapters
from llmservice_server.app import allow_origins, attach_engine_app, create_app
from llmservice_server.compat import load_nvml
from llmservice_server.cors import Origins
from llmservice_server.download import use_hub_again
from llmservice_server.drain import drain
from llmservice_server.engine import Engine
from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.errors import EngineUnavailable
from llmservice_server.failures import (
    ENGINE_HUNG,
    ENGINE_KILLED,
    NO_API_KEY,
    Reason,
    StartRefused,
    classify,
    facts_of,
    no_adapter_list,
    read_facts,
    too_slow,
    write_termination_message,
)
from llmservice_server.gate import ENGINE_FAILED, Admission, InFlight
from llmservice_server.gpu import find_gpus
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.listener import Listener, bind
from llmservice_server.loading import load_engine
from llmservice_server.logs import ENGINE_ERROR_FILE
from llmservice_server.management import create_management_app
from llmservice_server.management_thread import ManagementThread, beat
from llmservice_server.memory import find_trim, give_back_when_idle
from llmservice_server.metrics import ServerMetrics
from llmservice_server.routers import Readers
from llmservice_server.settings import ServerSettings
from llmservice_server.smoke_test import find_failure, question_for
from llmservice_server.trust import trust_bundle
from llmservice_server.watch import EngineWatch, Loss

logger = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0
"""Maximum time in seconds for a cancelled load to give up its turn at a shared cache."""
_LAST_ANSWERS_SECONDS = 1.0
"""Maximum time in seconds to send errors to clients after the engine has died."""


class Server:
    """One server, from its first listener to its exit code."""

    def __init__(self, command_line: Sequence[str], settings: ServerSettings) -> None:
        self._command_line = command_line
        self._settings = settings
        self._lifecycle = Lifecycle()
        self._in_flight = InFlight()
        self._usage = EngineUsage(_objectives(settings))
        self._readers = Readers()
        self._adapters: Adapters | None = None
        self._engine_error_file = Path(
            tempfile.gettempdir(), f"llmservice-engine-error.{os.getpid()}"
        )

    async def run(self) -> int:
        """Serve until SIGTERM; return the exit code.

        Raises PortUnavailable when a port cannot be bound.
        """
        os.environ[ENGINE_ERROR_FILE] = str(self._engine_error_file)
        # A killed container leaves the file behind. The server of the next container has the same
        # process id, so it would read the file as its own.
        self._engine_error_file.unlink(missing_ok=True)
        terminated = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, terminated.set)
        keys_folder = self._settings.api_keys_directory
        keys = ApiKeys(keys_folder) if keys_folder is not None else None
        app = create_app(self._admission(keys))
        # The probes also report a hang of this event loop.
        self._lifecycle.api_hang_seconds = self._settings.engine_hang_seconds
        beating = asyncio.ensure_future(beat(self._lifecycle))
        management_app = create_management_app(
            self._lifecycle,
            REGISTRY,
            self._usage,
            asyncio.get_running_loop(),
            self._readers,
            self._settings.identity,
        )
        management_socket = bind(self._settings.management_port)
        management = ManagementThread(lambda: Listener(management_app, management_socket))
        api = Listener(app, bind(self._settings.api_port))
        management.start()
        api.start()
        try:
            if keys is not None and not keys.has_any():
                # The load takes minutes. A missing key is reported before the load, not only when
                # the first client is refused.
                return self._fail(StartRefused(NO_API_KEY), Reason.LOAD_FAILED)
            return await self._load_and_serve(app, api, terminated)
        finally:
            await api.stop()
            await management.stop()
            beating.cancel()
            _kill_children()
            self._engine_error_file.unlink(missing_ok=True)

    def _admission(self, keys: ApiKeys | None) -> Admission:
        return Admission(
            self._lifecycle,
            ServerMetrics(REGISTRY, self._lifecycle, self._usage),
            self._in_flight,
            self._settings,
            keys,
            self._usage.turn_away,
            self._usage.keys.answered,
            self._readers,
        )

    async def _load_and_serve(self, app: FastAPI, api: Listener, terminated: asyncio.Event) -> int:
        loading = asyncio.ensure_future(self._load(app))
        stopping = asyncio.ensure_future(terminated.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            # No request is in progress. The loading task only has to end its turn at the shared
            # cache, so that another server can take it. Running threads end with the process.
            failure = too_slow(self._lifecycle)
            logger.info("told to stop while %s", self._lifecycle.phase.value)
            # The message can be read only if the kubelet stopped this container to start another
            # one.
            write_termination_message(failure, self._settings.termination_log)
            loading.cancel()
            await asyncio.wait((loading,), timeout=_LAST_WORDS_SECONDS)
            return 0
        try:
            engine = loading.result()
        except Exception as error:
            return self._fail(error, Reason.LOAD_FAILED)
        return await self._serve(engine, api, terminated)

    async def _load(self, app: FastAPI) -> Engine:
        if self._settings.ca_bundle is not None:
            trust_bundle(self._settings.ca_bundle, os.environ)
        engine = await load_engine(
            self._command_line,
            self._lifecycle,
            self._usage,
            self._settings,
            lambda arguments: allow_origins(app, Origins.from_arguments(arguments)),
        )
        if (gpus := find_gpus(load_nvml())) is not None:
            REGISTRY.register(gpus)
            self._usage.gpu_duty_cycle_percent = gpus.duty_cycle_percent
        self._lifecycle.engine_has_died = lambda: engine.has_died
        self._lifecycle.enter(Phase.WARMING_UP)
        engine_app = await engine.build_app(
            self._settings.administration_routes, lambda: self._in_flight.count
        )
        await engine.warm_up()
        self._adapters = await self._load_adapters(engine, engine_app)
        attach_engine_app(app, engine_app)
        if self._settings.smoke_test:
            await self._test(app, engine, engine_app)
        self._usage.begin()
        # The imported modules and the objects built so far exist until the process exits. Every
        # full garbage collection would scan them again and delay all responses by half a second.
        gc.collect()
        gc.freeze()
        self._lifecycle.enter(Phase.READY)
        logger.info("ready: %s", self._lifecycle.report())
        return engine

    async def _test(self, app: FastAPI, engine: Engine, engine_app: FastAPI) -> None:
        """Raise StartRefused if the model fails the smoke test.

        Raises EngineUnavailable if the engine dies during the test.
        """
        paths = {getattr(route, "path", "") for route in engine_app.routes}
        question = question_for(paths, self._settings.smoke_test_prompt)
        if question is None:
            logger.info("no smoke test: the model serves no route that has one")
            return
        self._lifecycle.enter(Phase.SMOKE_TESTING)
        with engine.unseen():
            failure = await find_failure(app, question, self._settings)
        if engine.has_died:
            raise EngineUnavailable("the engine died during the smoke test")
        if failure is not None:
            raise StartRefused(failure)

    async def _load_adapters(self, engine: Engine, engine_app: FastAPI) -> Adapters | None:
        """Load or refuse every LoRA adapter of the current list, then return the adapters.

        Returns None if the server has no list of adapters. Raises StartRefused if the list cannot
        be read or is invalid.
        """
        settings = self._settings
        if settings.adapters_file is None:
            return None
        use_hub_again()
        adapters = Adapters(
            AdapterFile(settings.adapters_file),
            adapters_folder(),
            engine.adapter_limits(settings.max_adapter_bytes),
            engine.adapters(engine_app),
            self._in_flight,
        )
        self._usage.adapters = adapters.report
        try:
            await adapters.load_first()
        except (OSError, ValueError) as error:
            raise StartRefused(no_adapter_list(settings.adapters_file, error)) from error
        return adapters

    async def _serve(self, engine: Engine, api: Listener, terminated: asyncio.Event) -> int:
        watch = EngineWatch(
            self._lifecycle,
            self._lifecycle.engine_has_died,
            self._usage.stalled_seconds,
            self._settings.engine_hang_seconds,
        )
        watching = asyncio.ensure_future(watch.run())
        background = [asyncio.ensure_future(give_back_when_idle(self._in_flight, find_trim()))]
        if self._adapters is not None:
            background.append(asyncio.ensure_future(self._adapters.follow()))
        stopping = asyncio.ensure_future(terminated.wait())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watch.loss is None:
            await drain(self._lifecycle, self._in_flight, api, self._settings, watch.lost)
        if watch.loss is not None:
            refused = StartRefused(ENGINE_HUNG) if watch.loss is Loss.HANGS else None
            code = self._fail(refused, Reason.ENGINE_DIED)
            await self._in_flight.wait_until_none(_LAST_ANSWERS_SECONDS)
            # Requests that are still open wait for the lost engine, so they are cut.
            await self._in_flight.cut_all(ENGINE_FAILED)
            return code
        for task in (watching, *background):
            task.cancel()
        await asyncio.to_thread(engine.shutdown)
        return 0

    def _fail(self, error: BaseException | None, unrecognised: Reason) -> int:
        """Report the reason of the failure and return the exit code.

        The report goes to the lifecycle, the log and the termination message.
        """
        if isinstance(error, StartRefused):
            failure = error.failure
        else:
            # The engine process writes the cause of its exit to the file. The error in this process
            # only says that the engine exited.
            facts = read_facts(self._engine_error_file) or (facts_of(error) if error else [])
            failure = classify(facts, unrecognised) if facts else ENGINE_KILLED
        self._lifecycle.fail(failure.reason, failure.message)
        logger.error("%s: %s", failure.reason, failure.message, exc_info=error)
        write_termination_message(failure, self._settings.termination_log)
        return 1


def _objectives(settings: ServerSettings) -> Objectives:
    ttft, itl = settings.slo_ttft_milliseconds, settings.slo_itl_milliseconds
    return Objectives(
        ttft=None if ttft is None else ttft / 1000, itl=None if itl is None else itl / 1000
    )


def _kill_children() -> None:
    """Kill all engine processes, whatever their state."""
    for child in multiprocessing.active_children():
        child.kill()
