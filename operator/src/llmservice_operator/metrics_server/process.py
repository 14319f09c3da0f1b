"""Runs the metrics server as a process: watches, rounds, three ports, and questions to others."""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import RouterReport
from llmservice_operator.cluster import (
    Cache,
    Cluster,
    EventRecorder,
    Key,
    Lease,
    Reflector,
    ServedKinds,
)
from llmservice_operator.engine_metrics import EngineMetrics
from llmservice_operator.kinds import LLMSERVICES, PODS
from llmservice_operator.metrics_server.calibration_store import CalibrationStore
from llmservice_operator.metrics_server.callers import Readers, Tokens, admission
from llmservice_operator.metrics_server.external_metrics import create_external_metrics_app
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.gauges import MetricsServerMetrics
from llmservice_operator.metrics_server.members import Members, member_name
from llmservice_operator.metrics_server.operator_lease import OperatorLease
from llmservice_operator.metrics_server.peers import PeerClient, Peers
from llmservice_operator.metrics_server.refused_requests import RefusedRequests
from llmservice_operator.metrics_server.registration import (
    NAMESPACES_ONLY,
    SWITCHED_OFF,
    Endpoint,
    Registration,
)
from llmservice_operator.metrics_server.report_api import create_report_app
from llmservice_operator.metrics_server.rest import refusal_of
from llmservice_operator.metrics_server.router_updates import RouterClient, RouterUpdates
from llmservice_operator.metrics_server.secure_server import SecureServer
from llmservice_operator.metrics_server.waking import Waking, add_wakes
from llmservice_operator.service_account_token import TokenFile
from llmservice_operator.settings import PREFIX, OperatorSettings
from llmservice_operator.tasks import Tasks
from llmservice_operator.telemetry import (
    Health,
    ProcessMetrics,
    create_app,
    measure_loop_lag,
    start_server,
)

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 5.0
LAST_WRITES_SECONDS = 5.0
"""Longest time in seconds for which the process delays its exit so that the API server can store
the calibrations."""


async def next_round() -> float:
    """Wait until the next round begins; return its time in seconds since 1970. It is the same in
    all metrics servers.
    """
    at = math.floor(time.time() / PERIOD_SECONDS + 1) * PERIOD_SECONDS
    await asyncio.sleep(at - time.time())
    return at


class MetricsServer:
    """The metrics server.

    All replicas serve the reports of all services. Each one measures its share of the services, and
    writes the calibrations of those of which it is the learner.
    """

    def __init__(self, settings: OperatorSettings) -> None:
        own = settings.metrics_server
        self._settings = settings
        self._address = member_name(own.pod_address, own.scaling_port)
        self._tasks = Tasks()
        self._round_ended: float | None = None

    async def run(self) -> int:
        """Run until a signal arrives or a task fails. Return the exit code, which is 1 after a
        failure.

        Raises OSError if a port cannot be used, and ClusterError if neither a kubeconfig nor a
        service account gives access to a cluster.
        """
        settings, own = self._settings, self._settings.metrics_server
        metrics, health = MetricsServerMetrics(), Health(self._seconds_since_round)
        cluster = await Cluster.connect(metrics, f"metrics-server {self._address}")
        engines, routers = EngineMetrics(), RouterClient()
        others = PeerClient(TokenFile(settings.token_file).headers)
        cache = Cache()
        members = Members(
            cluster,
            settings.namespace,
            own.service_name,
            self._address,
            functools.partial(health.report_hindrance, "members"),
            lambda: waking.note(),
        )
        events = EventRecorder(cluster, self._address, lambda: datetime.now(UTC))
        refused = RefusedRequests(
            cache.service, events.record, lambda key: members.shares.leads(key)
        )

        async def on_report(key: Key, report: RouterReport) -> None:
            await refused.note(key, report)
            await waking.heed(key, report)

        updates = RouterUpdates(
            lambda key: cache.owned(key, PODS),
            lambda: cache.of_kind(PODS),
            lambda: cache.changes(PODS) + members.changes,
            routers.send,
            on_report,
            refusal_of=lambda key: refusal_of(cache.service(key)),
            rests=lambda key: waking.rests(key),
            keeps=lambda key: members.shares.keeps(key),
        )
        waking = Waking(
            lambda: cache.of_kind(LLMSERVICES),
            lambda: cache.of_kind(PODS),
            routers.next_held,
            lambda key, held: fleet.held_percent(key, held),
            keeps=lambda key: members.shares.keeps(key),
            changes=lambda: cache.changes(LLMSERVICES) + cache.changes(PODS) + members.changes,
        )

        def note(key: Key) -> None:
            updates.note(key)
            waking.note()

        reflector = self._reflector(cluster, cache, note, metrics, health)
        for kind in (LLMSERVICES, PODS):
            metrics.read_cache(
                kind.plural,
                functools.partial(cache.count, kind),
                functools.partial(cache.count_unreadable, kind),
            )
        secure, registration = self._external(cluster, health)
        unregistered = NAMESPACES_ONLY if settings.watch_namespaces else SWITCHED_OFF
        fleet = Fleet(
            lambda: cache.of_kind(LLMSERVICES),
            lambda: cache.of_kind(PODS),
            engines,
            lambda: registration.state if registration else unregistered,
            settings.accelerator_classes,
            metrics.scraped,
            updates.ask,
            lambda: members.shares,
            lambda: peers.silent,
        )
        peers = Peers(
            lambda: members.shares, others.reports, others.wakes, fleet.take, waking.learn
        )
        metrics.read_reports(lambda: fleet.watched_reports)
        metrics.read_shares(lambda: len(members.shares.ready), fleet.number_of_services)
        tokens = Tokens(lambda token: cluster.review_token(token, names.METRICS_SERVER_AUDIENCE))
        earlier = self._operator_lease(cluster)
        reports = create_report_app(fleet, admission(self._readers(), tokens, earlier))
        add_wakes(reports, waking)
        servers = [
            await start_server(create_app(metrics, health), settings.health_port),
            await start_server(reports, own.scaling_port),
        ]
        # A draining process still serves reports, so the watches run until the process exits.
        self._tasks.start("watches", reflector.run(asyncio.Event()))
        self._tasks.start("audit", reflector.audit())
        self._tasks.start("router-updates", _once(reflector.loaded, updates.run))
        self._tasks.start("waking", _once(reflector.loaded, waking.run))
        self._tasks.start("peers", peers.run())
        # The last writes are about the services of which this process was the learner.
        searching = self._tasks.start("members", members.run())
        ending = list[asyncio.Task[None]]()
        self._tasks.start("loop-lag", measure_loop_lag(metrics))
        if secure is not None and registration is not None:
            metrics.read_external(secure, registration)
            health.not_ready("external", "external metrics are not served yet")
            app = create_external_metrics_app(
                lambda: fleet.reports, lambda: secure.front_proxy, cluster.review_access
            )
            self._tasks.start("secure-server", secure.run(app))
            register = self._register(secure, registration, health)
            ending.append(self._tasks.start("registration", register))
        else:
            logger.info("%s", unregistered.message)
        store = CalibrationStore(cluster)
        self._tasks.start(
            "rounds",
            self._rounds(fleet, cache, reflector.loaded, members, peers, store, health, metrics),
        )
        self._tasks.heed_signals()
        try:
            await self._tasks.stop.wait()
            health.not_ready("leaving", "the process is about to end")
            await self._tasks.cancel(searching)
            await _write_last(store, fleet, cache)
            await self._leave(*ending)
        finally:
            await self._tasks.cancel_all()
            for server in servers:
                await server.cleanup()
            await tokens.close()
            await engines.close()
            await others.close()
            await routers.close()
            await cluster.close()
        return 1 if self._tasks.failed else 0

    def _readers(self) -> Readers:
        settings, own = self._settings, self._settings.metrics_server
        if not own.report_readers:
            logger.warning(
                "everybody may read the load reports on port %d: set %sREPORT_READERS to the"
                " ServiceAccounts that may",
                *(own.scaling_port, PREFIX),
            )
        return Readers(
            frozenset(own.report_readers),
            own.keda_reader,
            one_is_open=settings.keda and own.keda_reader is None,
        )

    def _operator_lease(self, cluster: Cluster) -> OperatorLease | None:
        name = self._settings.metrics_server.operator_lease_name
        if name is None:
            return None
        return OperatorLease(Lease(cluster, self._settings.namespace, name).read_lease)

    def _reflector(
        self,
        cluster: Cluster,
        cache: Cache,
        on_change: Callable[[Key], None],
        metrics: ProcessMetrics,
        health: Health,
    ) -> Reflector:
        namespaces = self._settings.watch_namespaces or (None,)

        def report(problem: str | None) -> None:
            # Once loaded, the process continues with the cached objects, because an outage must not
            # stop the scaling.
            if problem is not None and not reflector.loaded.is_set():
                health.not_ready("watches", problem)

        reflector = Reflector(
            cluster,
            ServedKinds(cluster, namespaces, (LLMSERVICES, PODS), {}),
            cache,
            namespaces,
            on_change,
            metrics,
            report,
            self._settings.audit_period_seconds,
            on_hindrance=functools.partial(health.report_hindrance, "watches"),
        )
        return reflector

    def _external(
        self, cluster: Cluster, health: Health
    ) -> tuple[SecureServer | None, Registration | None]:
        """Return the parts that serve external metrics; None for both if the settings say that it
        serves none.
        """
        settings, own = self._settings, self._settings.metrics_server
        if not settings.serves_metrics_api:
            return None, None
        host = f"{own.service_name}.{settings.namespace}.svc"
        secure = SecureServer(
            cluster, own.external_port, (host, f"{host}.cluster.local"), lambda: datetime.now(UTC)
        )
        registration = Registration(
            cluster,
            Endpoint(settings.namespace, own.service_name, own.service_port),
            own.owner_role,
            secure.authority,
            lambda: datetime.now(UTC),
            lambda: not health.why_not_ready(),
        )
        secure.authority_changed = registration.requeue
        return secure, registration

    async def _register(
        self, secure: SecureServer, registration: Registration, health: Health
    ) -> None:
        """Register the APIService once this process serves requests.

        An earlier registration would break the API.
        """
        await secure.serving.wait()
        health.ready("external")
        await registration.run()

    async def _rounds(
        self,
        fleet: Fleet,
        cache: Cache,
        loaded: asyncio.Event,
        members: Members,
        peers: Peers,
        store: CalibrationStore,
        health: Health,
        metrics: MetricsServerMetrics,
    ) -> None:
        """Measure the services every five seconds, at the same moments in all replicas."""
        await loaded.wait()
        await members.found.wait()
        health.not_ready(
            "warm-up", "another replica knows loads that this one knows only after a minute"
        )
        health.ready("watches")
        while True:
            at = await next_round()
            began, others_are_asked = time.monotonic(), peers.are_asked
            await fleet.round(at)
            self._round_ended = time.monotonic()
            metrics.round_ended(self._round_ended - began)
            await store.write(at, fleet.learned, _services(cache))
            if others_are_asked and not fleet.lags:
                health.ready("warm-up")

    async def _leave(self, *ending: asyncio.Task[None]) -> None:
        """Serve requests until clients have stopped sending them."""
        await self._tasks.cancel(*ending)
        if not self._tasks.failed:
            await asyncio.sleep(self._settings.metrics_server.drain_seconds)

    def _seconds_since_round(self) -> float:
        return 0.0 if self._round_ended is None else time.monotonic() - self._round_ended


async def _write_last(store: CalibrationStore, fleet: Fleet, cache: Cache) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_WRITES_SECONDS):
            await store.write(time.time(), fleet.learned, _services(cache), is_last=True)


async def _once(loaded: asyncio.Event, run: Callable[[], Awaitable[None]]) -> None:
    await loaded.wait()
    await run()


def _services(cache: Cache) -> dict[Key, Manifest]:
    return {
        (manifest["metadata"]["namespace"], manifest["metadata"]["name"]): manifest
        for manifest in cache.of_kind(LLMSERVICES)
    }
