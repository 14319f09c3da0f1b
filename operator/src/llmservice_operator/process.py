"""The running operator: assembles its parts and runs them."""

import asyncio
import functools
import socket
import uuid
from datetime import UTC, datetime

from aiohttp import web

from llmservice_operator.children import REQUIRED_KINDS, optional_kinds
from llmservice_operator.cluster import (
    Cache,
    Cluster,
    EventRecorder,
    Key,
    Lease,
    Reflector,
    ServedKinds,
    Term,
)
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.idle_client import WakeClient
from llmservice_operator.leader import Leader, LeaderSettings
from llmservice_operator.load_report_client import LoadReportClient
from llmservice_operator.reconcile import Reconciler
from llmservice_operator.service_account_token import TokenFile
from llmservice_operator.settings import PREFIX, OperatorSettings
from llmservice_operator.tasks import Tasks
from llmservice_operator.telemetry import (
    Health,
    Metrics,
    create_app,
    measure_loop_lag,
    start_server,
)
from llmservice_operator.withdrawal import Withdrawal
from llmservice_operator.workqueue import QueueSettings, Shares, WorkQueue


class Process:
    """The running operator. Every process watches the cluster, but only the leader runs passes."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._tasks = Tasks()

    async def run(self) -> int:
        """Run until a signal arrives or a task fails. Return the exit code, which is 1 after a
        failure.

        Raises InvalidSettings if the health port cannot be used, and ClusterError if neither a
        kubeconfig nor a service account gives access to a cluster.
        """
        settings = self._settings
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        metrics, cache = Metrics(), Cache()
        shares = Shares()
        # The workers are shared among namespaces, because slow webhooks and quotas usually delay
        # all services of one namespace.
        queue: WorkQueue[Key] = WorkQueue(
            metrics, QueueSettings(shares=shares), group_of=lambda key: key[0]
        )
        health = Health(queue.longest_running_seconds)
        cluster = await Cluster.connect(metrics, identity)
        server = await self._serve(metrics, health)
        leader = Leader(
            Lease(
                cluster,
                settings.namespace,
                settings.lease_name,
                sends_token=settings.token_file is not None,
            ),
            identity,
            LeaderSettings(settings.lease_seconds),
        )
        cluster.may_write = leader.is_holding
        namespaces = settings.watch_namespaces or (None,)
        optional = optional_kinds(settings)
        served = ServedKinds(cluster, namespaces, REQUIRED_KINDS, optional)
        reflector = Reflector(
            cluster,
            served,
            cache,
            namespaces,
            queue.add,
            metrics,
            functools.partial(health.report, "watches"),
            settings.audit_period_seconds,
            on_hindrance=functools.partial(health.report_hindrance, "watches"),
        )
        headers = TokenFile(settings.token_file).headers
        reports = LoadReportClient(settings.metrics_server_url, queue.add, headers=headers)
        wakes = WakeClient(settings.metrics_server_url, queue.add, headers=headers)
        reconciler = Reconciler(
            cluster,
            cache,
            served,
            EventRecorder(cluster, identity, _now),
            metrics,
            settings,
            _now,
            reports,
            functools.partial(health.report_hindrance, "crd"),
            wakes.read,
        )
        metrics.read_leadership(settings.lease_name, leader.is_holding)
        metrics.read_queue(queue, shares.workers)
        for kind in (*REQUIRED_KINDS, *(kind for kind, granted in optional.items() if granted)):
            metrics.read_cache(
                kind.plural,
                functools.partial(cache.count, kind),
                functools.partial(cache.count_unreadable, kind),
            )

        term, begun = Term(cluster, cache, namespaces, queue.add), asyncio.Event()

        async def begin() -> None:
            await reflector.loaded.wait()
            await leader.elected.wait()
            await term.begin()
            # Before the first poll ends, every load would be reported as unknown.
            await reports.polled.wait()
            begun.set()

        async def process(key: Key) -> float | None:
            await term.confirm(key)
            return await reconciler.reconcile(key)

        async def heed_wakes() -> None:
            await begun.wait()
            await wakes.run()

        async def work() -> None:
            await begun.wait()
            await queue.work(process)

        async def withdraw() -> None:
            await begun.wait()
            if settings.serves_metrics_api and settings.metrics_service is not None:
                await Withdrawal(cluster, *settings.metrics_service).run()

        election = self._tasks.start("leader", leader.run())
        beginning = self._tasks.start("term", begin())
        workers = [
            self._tasks.start(f"worker-{number}", work()) for number in range(shares.workers)
        ]
        withdrawal = self._tasks.start("withdrawal", withdraw())
        self._tasks.start("audit", reflector.audit())
        self._tasks.start("load-reports", reports.run())
        self._tasks.start("wakes", heed_wakes())
        self._tasks.start("discovery", reflector.discover())
        self._tasks.start("loop-lag", measure_loop_lag(metrics))
        leaving = self._tasks.start(
            "leaving", self._leave(leader, election, beginning, withdrawal, *workers)
        )
        self._tasks.heed_signals()
        try:
            await reflector.run(self._tasks.stop)
            self._tasks.stop.set()
            await leaving
        finally:
            await self._tasks.cancel_all()
            await cluster.close()
            await server.cleanup()
        return 1 if self._tasks.failed else 0

    async def _serve(self, metrics: Metrics, health: Health) -> web.AppRunner:
        port = self._settings.health_port
        try:
            return await start_server(create_app(metrics, health), port)
        except OSError as error:
            raise InvalidSettings(
                f"port {port} cannot be served: {error.strerror or error}; set {PREFIX}HEALTH_PORT"
                " to a free one"
            ) from error

    async def _leave(self, leader: Leader, *working: asyncio.Task[None]) -> None:
        """Wait until the process must exit, and cancel the tasks in `working`. Then release the
        Lease, before slower cleanup starts.
        """
        await self._tasks.stop.wait()
        await self._tasks.cancel(*working)
        await leader.release()


def _now() -> datetime:
    return datetime.now(UTC)
