"""The first process of a router pod: it runs Envoy, the picker and the forwarder.

It tells Envoy and the picker which replicas exist, serves the probes and the metrics, and drains
Envoy before the pod ends.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from llmservice_operator.engine_metrics import EngineMetrics
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.names import GATEWAY_READINESS_PROBE_PATH
from llmservice_operator.router import replica_view
from llmservice_operator.router.endpoint_files import EndpointFiles
from llmservice_operator.router.envoy_admin import EnvoyAdmin, EnvoyAway
from llmservice_operator.router.envoy_config import ARGUMENTS
from llmservice_operator.router.envoy_names import (
    ADMIN_SOCKET,
    CLUSTER_OR_FORWARDER,
    CLUSTER_REPLICAS,
    FORWARDED_SOCKET,
)
from llmservice_operator.router.picker_status import read_status
from llmservice_operator.router.pod_metrics import PodMetrics
from llmservice_operator.router.processes import END_SECONDS, ChildProcess, Start, program
from llmservice_operator.router.replica_updates import ReplicaUpdates
from llmservice_operator.router.replica_view import View
from llmservice_operator.router.replicas import (
    LOOKUP_PERIOD_SECONDS,
    LOOKUP_SECONDS,
    Replicas,
    Resolve,
    resolve,
)
from llmservice_operator.router_settings import ROUTER_PREFIX, RouterSettings
from llmservice_operator.tasks import Tasks
from llmservice_operator.telemetry import create_app, start_server

logger = logging.getLogger(__name__)

LINE_SECONDS: Final = 1.0
"""Longest time in seconds between two lines that the supervisor writes to the picker."""

READ_SECONDS: Final = 1.0
"""Longest time in seconds for which a line to the picker is held back until Envoy has read the same
replicas."""

POLL_SECONDS: Final = 0.2
"""Time in seconds between two looks at the requests in progress during a drain."""

ATTEMPTS: Final = 5
"""Largest number of attempts to tell Envoy that it must drain."""

AWAY_SECONDS: Final = 60.0
"""Time in seconds without an answer of Envoy after which the pod counts as not alive."""

CLIENT_LISTENER: Final = "clients"
"""Name of the clients' listener in the names of Envoy's counters."""


class Supervisor:
    """Runs the processes of the pod, and reports the replicas to them."""

    def __init__(
        self,
        settings: RouterSettings,
        start_picker: Start,
        start_forwarder: Start,
        resolve: Resolve = resolve,
    ) -> None:
        self.settings = settings
        self._tasks = Tasks()
        self.stop = self._tasks.stop
        """Set when the pod must end."""
        self._resolve = resolve
        self._files = EndpointFiles(settings)
        self._metrics = EngineMetrics(now=time.monotonic)
        self._admin = EnvoyAdmin(settings.run_directory / ADMIN_SOCKET)
        self.replicas = Replicas(settings, self._metrics, resolve)
        self._updates = ReplicaUpdates(settings, self.replicas, resolve)
        self._other_pickers: tuple[str, ...] = ()
        """Addresses and ports of the pickers in the other router pods."""
        self._looked_up = asyncio.Event()
        """Set after the first lookup of the pickers."""
        self._line: bytes | None = None
        """Last line to the picker. It is set after Envoy has read the same replicas, or after
        `READ_SECONDS`."""
        self._live_at = time.monotonic()
        self._is_live = False
        self.picker = ChildProcess("picker", start_picker, first_line=lambda: self._line)
        self.forwarder = ChildProcess("forwarder", start_forwarder)
        self.envoy = ChildProcess(
            "envoy", program(*self._envoy_command()), before_start=self._before_envoy
        )
        self._is_proxy = settings.gateway_port is None
        """Whether requests pass through this pod. Otherwise, Gateways only ask its picker."""
        self.processes = (
            (self.picker, self.forwarder, self.envoy) if self._is_proxy else (self.picker,)
        )

    async def run(self) -> int:
        """Run until a signal arrives, and then until the requests in progress have ended.

        Return the exit code. Raises InvalidSettings if the management port is taken.
        """
        tasks = self._tasks
        self._write_files()
        server = await self._serve()
        try:
            tasks.heed_signals()
            for process in self.processes:
                tasks.start(process.name, process.run())
            tasks.start("replicas", self.replicas.run())
            tasks.start("replica-updates", self._updates.run())
            tasks.start("picker-list", self._follow_pickers())
            tasks.start("line", self._tell_for_ever())
            watching = self._watch_envoy() if self._is_proxy else self._watch_picker()
            tasks.start("state", watching)
            await self.stop.wait()
            await (self._drain() if self._is_proxy else self._drain_picker())
        finally:
            # Envoy first: the requests in progress need the others.
            await self.envoy.end()
            await asyncio.gather(self.picker.end(), self.forwarder.end())
            await tasks.cancel_all()
            await self._admin.close()
            await self._metrics.close()
            await server.cleanup()
        return 1 if tasks.failed else 0

    async def _serve(self) -> web.AppRunner:
        port = self.settings.management_port
        metrics = PodMetrics(
            self.settings, self._admin, self.replicas, self._updates, self.processes
        )
        further = () if self._is_proxy else (GATEWAY_READINESS_PROBE_PATH,)
        app = create_app(metrics, self, *further)
        self._updates.add_to(app)
        try:
            return await start_server(app, port)
        except OSError as error:
            raise InvalidSettings(
                f"port {port} cannot be served: {error.strerror or error}; set "
                f"{ROUTER_PREFIX}MANAGEMENT_PORT to a free one"
            ) from error

    def why_not_alive(self) -> list[str]:
        """Return the reasons why the pod must be started again; empty if it is alive."""
        if (
            self.stop.is_set()
            or not self._is_proxy
            or time.monotonic() - self._live_at < AWAY_SECONDS
        ):
            return []
        return [f"Envoy has not answered for {AWAY_SECONDS:.0f} s"]

    def why_not_ready(self) -> list[str]:
        """Return the reasons why the pod must get no new connections; empty if it is ready.

        A missing picker is no reason, because Envoy then chooses the replicas itself.
        """
        reasons = {
            "the router ends": self.stop.is_set(),
            "the replicas have not been asked yet": not self.replicas.asked.is_set(),
            "Envoy is not live": self._is_proxy and not self._is_live,
            "the picker does not answer": not self._is_proxy and not self._is_live,
            # Such replicas get no requests from the router, so clients must not be moved to it.
            "the model servers do not say which service they belong to; use the image of this "
            "release": self.replicas.are_nameless,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def why_hindered(self) -> list[str]:
        """Return which processes do not run at present."""
        return [f"the {it.name} does not run" for it in self.processes if not it.is_running]

    def _envoy_command(self) -> tuple[str, ...]:
        seconds = self.settings.drain_seconds + self.settings.drain_timeout_seconds
        return (
            *("envoy", "--config-path", str(self._files.bootstrap)),
            # The listeners accept connections until all requests have ended.
            *("--drain-time-s", str(max(seconds, 1))),
            *ARGUMENTS,
        )

    def _before_envoy(self) -> None:
        """Remove the sockets of an Envoy that has ended, because they block the next one."""
        for name in (ADMIN_SOCKET, FORWARDED_SOCKET):
            (self.settings.run_directory / name).unlink(missing_ok=True)

    def _write_files(self) -> None:
        """Write all files of Envoy before it starts."""
        if not self._is_proxy:
            self.settings.run_directory.mkdir(parents=True, exist_ok=True)
            return
        self._files.write_bootstrap()
        self._files.write_replicas(())
        self._files.write_pickers([self._own_picker])

    @property
    def _own_picker(self) -> str:
        """Address of the pod's own picker."""
        return "127.0.0.1" if self.settings.pickers_host is None else self.settings.pod_address

    async def _follow_pickers(self) -> None:
        """Keep the list of pickers up to date. It must have the same order in all router pods."""
        host, port = self.settings.pickers_host, self.settings.picker_port
        if host is None:
            self._looked_up.set()
        while host is not None:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    hosts = sorted(await self._resolve(host))
            except (OSError, TimeoutError) as error:
                logger.debug("DNS names no picker: %s", error)
            else:
                # DNS perhaps does not know this pod yet.
                own = [] if self._own_picker in hosts else [self._own_picker]
                if self._is_proxy:
                    self._files.write_pickers([*hosts, *own])
                self._other_pickers = tuple(
                    f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
                    for each in hosts
                    if each != self._own_picker
                )
            self._looked_up.set()
            await asyncio.sleep(LOOKUP_PERIOD_SECONDS)

    async def _tell_for_ever(self) -> None:
        """Tell Envoy and the picker which replicas exist, after each change and every second."""
        await self.replicas.asked.wait()
        # A picker that knew of no other one would choose replicas before it has a copy.
        await self._looked_up.wait()
        while True:
            self.replicas.changed.clear()
            views = self.replicas.views()
            version = self._files.write_replicas(views) if self._is_proxy else None
            if version is not None:
                # If the picker chose a replica that Envoy does not know yet, Envoy would find no
                # endpoint for the request.
                await self._wait_until_read(version)
            self._line = replica_view.encode(
                View(views, self._other_pickers, self._updates.refusal)
            )
            self.picker.write(self._line)
            try:
                async with asyncio.timeout(LINE_SECONDS):
                    await self.replicas.changed.wait()
            except TimeoutError:
                pass

    async def _wait_until_read(self, version: str) -> None:
        clusters = (CLUSTER_REPLICAS, CLUSTER_OR_FORWARDER)
        try:
            async with asyncio.timeout(READ_SECONDS):
                while not await self._admin.has_read(clusters, version):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except (EnvoyAway, TimeoutError):
            logger.debug("Envoy has not read its endpoints yet")

    async def _watch_envoy(self) -> None:
        while True:
            self._is_live = await self._admin.is_live()
            if self._is_live:
                self._live_at = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    async def _watch_picker(self) -> None:
        while True:
            status = await read_status(self.settings.run_directory)
            self._is_live = bool(status.metrics)
            await asyncio.sleep(LINE_SECONDS)

    async def _drain(self) -> None:
        """Wait until the cluster sends no new clients, and until all requests have ended."""
        seconds = self.settings.drain_seconds
        logger.info("draining: clients are expected to leave within %d s", seconds)
        await self._persist(self._admin.ask_clients_to_leave)
        await asyncio.sleep(seconds)
        await self._persist(self._admin.tell_connections_to_close)
        try:
            async with asyncio.timeout(self.settings.drain_timeout_seconds):
                await self._wait_until_idle()
                await self._persist(self._admin.refuse_connections)
                await self._wait_until_idle()
        except TimeoutError:
            logger.error("requests are still in progress at the end of the drain")
        else:
            logger.info("all requests have ended")

    async def _drain_picker(self) -> None:
        """Wait until Gateways ask other pods, and until all requests have ended."""
        seconds = self.settings.drain_seconds
        logger.info("draining: Gateways are expected to leave within %d s", seconds)
        await asyncio.sleep(seconds)
        # The messages of a request pass through the picker until its answer ends.
        await self.picker.end(self.settings.drain_timeout_seconds + END_SECONDS)

    async def _wait_until_idle(self) -> None:
        while self.envoy.is_running:
            try:
                if await self._admin.active_requests(CLIENT_LISTENER) == 0:
                    return
            except EnvoyAway as error:
                logger.debug("Envoy does not answer now: %s", error)
            await asyncio.sleep(POLL_SECONDS)

    async def _persist(self, action: Callable[[], Awaitable[None]]) -> None:
        """Repeat an action a few times while Envoy does not answer."""
        for _ in range(ATTEMPTS):
            try:
                await action()
            except EnvoyAway as error:
                logger.warning("Envoy does not answer: %s", error)
                await asyncio.sleep(POLL_SECONDS)
            else:
                return
