"""The watches: Kopf delivers every event, a handler notes it and enqueues the service it is about.

Nothing else happens here. Kopf never retries an event handler and gives up watching on some
errors, so work, retries and the supervision of the watches are ours.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kopf

from llmservice_operator.cluster import (
    DISCOVERY_PERIOD_SECONDS,
    Audit,
    Cache,
    Key,
    ServedKinds,
    load_configuration,
    owner_key,
)
from llmservice_operator.errors import ClusterError, Forbidden, NotServed
from llmservice_operator.kinds import LLMSERVICES, Kind
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.telemetry import Health, Metrics

logger = logging.getLogger(__name__)

RESTART_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
HEALTHY_AFTER_SECONDS = 60.0
"""Watches that ran this long before they broke begin the backoff anew."""
WAIT_FOR_CLUSTER_SECONDS = 5.0
_HOW_TO_SERVE = {
    LLMSERVICES.kind: "apply crds/llmservice.yaml or install the chart with crds.install=true"
}
"""What to do where a kind is not served, for kinds that are not Kubernetes' own."""


def build_registry(
    cache: Cache, enqueue: Callable[[Key], None], metrics: Metrics, kinds: Sequence[Kind]
) -> kopf.OperatorRegistry:
    """Return Kopf's registry with the one event handler for each of the kinds."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login)

    async def note(event: Any, resource: kopf.Resource, **_: Any) -> None:
        metrics.watch_event(resource.plural)
        manifest = event["object"]
        deleted = event["type"] == "DELETED"
        news = cache.drop(manifest) if deleted else cache.observe(manifest)
        owner = owner_key(manifest)
        if news and owner is not None:
            enqueue(owner)

    for kind in kinds:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(note)
    return registry


async def login(**_: Any) -> kopf.ConnectionInfo:
    """Log in as our own client does; called again when the API server refuses the credentials."""
    found = await load_configuration()
    header = await found.get_api_key_with_prefix("BearerToken") or ""
    scheme, __, token = header.strip().rpartition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        proxy_url=found.proxy,
    )


class EndlessBackoffs:
    """Delays between attempts of one request, without end: Kopf gives up for good after the last.

    An API server that is away for an hour must not end the watches.
    """

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.8, 1.2)
            delay = min(delay * 2, 15.0)


def build_settings(kinds: Sequence[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    # Without scanning Kopf needs no right to watch namespaces and CRDs.
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1
    settings.process.ultimate_exiting_timeout = None
    for kind in kinds:
        if kind.label_selector:
            selector = (kind.group, kind.version, kind.plural)
            settings.watching.label_selectors[selector] = kind.label_selector
    return settings


class Watches:
    """Keeps the watches running: loads the cache, starts Kopf, and again when Kopf stops."""

    def __init__(
        self,
        settings: OperatorSettings,
        build_registry: Callable[[Sequence[Kind]], kopf.OperatorRegistry],
        served: ServedKinds,
        audit: Audit,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self.loaded = asyncio.Event()
        """Set once the cache holds all there is: before that everything looks deleted."""
        self._namespaces = settings.watch_namespaces
        self._build_registry = build_registry
        self._served = served
        self._audit = audit
        self._health = health
        self._metrics = metrics
        self._stop_kopf = asyncio.Event()
        self._kinds_changed = False

    def restart(self) -> None:
        """Stop the running watches; new ones start at once."""
        self._stop_kopf.set()

    async def run(self, stop: asyncio.Event, own_signals: Callable[[], None]) -> None:
        """Watch until `stop` is set. `own_signals` takes back the signals that Kopf grabs."""
        failures = 0
        clock = asyncio.get_running_loop()
        while not stop.is_set():
            if not await self._load():
                await _wait(stop, WAIT_FOR_CLUSTER_SECONDS)
                continue
            started = clock.time()
            await self._watch(stop, own_signals)
            if stop.is_set():
                return
            if self._kinds_changed:
                continue
            self._health.not_ready("watches", "the watches have stopped and are being restarted")
            self._metrics.watches_restarted()
            failures = 0 if clock.time() - started > HEALTHY_AFTER_SECONDS else failures + 1
            await _wait(
                stop, RESTART_BACKOFF_SECONDS[min(failures, len(RESTART_BACKOFF_SECONDS)) - 1]
            )

    async def _load(self) -> bool:
        """Fill the cache; when that fails say why, for people, and return False."""
        try:
            await self._audit.reload()
        except NotServed as error:
            reason = (
                f"{error}: {_HOW_TO_SERVE.get(error.kind, 'the operator cannot work without it')}"
            )
        except Forbidden as error:
            reason = f"a right is missing, grant it to the operator's service account: {error}"
        except ClusterError as error:
            reason = f"the cluster cannot be read: {error}"
        else:
            self._health.ready("watches")
            self.loaded.set()
            return True
        self._health.not_ready("watches", reason)
        logger.error("%s; trying again in %d s", reason, WAIT_FOR_CLUSTER_SECONDS)
        return False

    async def _watch(self, stop: asyncio.Event, own_signals: Callable[[], None]) -> None:
        self._stop_kopf = asyncio.Event()
        self._kinds_changed = False
        kinds = self._served.watched
        aside = (
            asyncio.create_task(_forward(stop, self._stop_kopf)),
            asyncio.create_task(self._look_for_kinds()),
        )
        # Kopf ends every task that is younger than itself when it stops.
        older = asyncio.all_tasks()
        try:
            tasks = await kopf.spawn_tasks(
                registry=self._build_registry(kinds),
                settings=build_settings(kinds),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                standalone=True,
                stop_flag=self._stop_kopf,
            )
            own_signals()
            await kopf.run_tasks(tasks, ignored=older)
        except Exception:
            logger.exception("the watches broke")
        finally:
            for task in aside:
                task.cancel()

    async def _look_for_kinds(self) -> None:
        """End these watches as soon as other kinds are to be watched."""
        while True:
            await asyncio.sleep(DISCOVERY_PERIOD_SECONDS)
            try:
                if not await self._served.refresh():
                    continue
            except ClusterError as error:
                logger.warning("the kinds that are served cannot be looked up: %s", error)
                continue
            logger.info(
                "other kinds are served now; watching %s",
                ", ".join(kind.plural for kind in self._served.watched),
            )
            self._kinds_changed = True
            self._stop_kopf.set()
            return


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


async def _forward(source: asyncio.Event, target: asyncio.Event) -> None:
    await source.wait()
    target.set()
