"""What the operator tells about itself: JSON logs, Prometheus metrics, health endpoints."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Protocol, TextIO

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTROLLER = "llmservice"
"""The one controller of this process: the value of the `controller` and `name` labels."""

STUCK_SECONDS = 120.0
"""A pass is cancelled after 60 s; one this old ignores its cancellation, only a restart helps."""

PASS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_log_fields: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default=MappingProxyType({}))


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Add fields to every log line that is written inside the block."""
    token = _log_fields.set({**_log_fields.get(), **fields})
    try:
        yield
    finally:
        _log_fields.reset(token)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            **_log_fields.get(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str, stream: TextIO = sys.stderr) -> None:
    """Write every log line of this process as one JSON object."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Kopf tells of every handler call at INFO; ours log what they do themselves.
    logging.getLogger("kopf").setLevel(logging.INFO if level == "DEBUG" else logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


class QueueState(Protocol):
    """The part of the work queue that is shown in gauges."""

    def __len__(self) -> int: ...

    def busy(self) -> int: ...

    def unfinished_seconds(self) -> float: ...

    def longest_running_seconds(self) -> float: ...


class Metrics:
    """All metrics of the process. Names of controller-runtime are kept: its dashboards fit."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._passes = counter(
            "controller_runtime_reconcile", "Passes by result", "controller", "result"
        )
        self._pass_errors = counter(
            "controller_runtime_reconcile_errors", "Passes that failed", "controller"
        )
        self._terminal_errors = counter(
            "controller_runtime_terminal_reconcile_errors",
            "Passes that found something only the user can repair",
            "controller",
        )
        self._pass_timeouts = counter(
            "controller_runtime_reconcile_timeouts", "Passes cut off", "controller"
        )
        self._pass_seconds = histogram(
            "controller_runtime_reconcile_time_seconds", "Length of a pass", "controller"
        )
        self._workers = gauge(
            "controller_runtime_max_concurrent_reconciles", "Number of workers", "controller"
        )
        self._active = gauge(
            "controller_runtime_active_workers", "Workers with a key in hand", "controller"
        )
        self._depth = gauge("workqueue_depth", "Keys waiting for a worker", "name")
        self._adds = counter("workqueue_adds", "Keys added", "name")
        self._retries = counter("workqueue_retries", "Keys added again after a failure", "name")
        self._waited = histogram("workqueue_queue_duration_seconds", "Wait for a worker", "name")
        self._worked = histogram("workqueue_work_duration_seconds", "Length of a pass", "name")
        self._unfinished = gauge(
            "workqueue_unfinished_work_seconds", "Time spent on passes not ended", "name"
        )
        self._longest = gauge(
            "workqueue_longest_running_processor_seconds", "Oldest pass not ended", "name"
        )
        self._requests = counter("rest_client_requests", "API requests", "code", "method", "host")
        self._request_seconds = histogram(
            "rest_client_request_duration_seconds", "Length of an API request", "verb", "host"
        )
        self._leading = gauge("leader_election_master_status", "1 on the leader", "name")
        self._events = counter("llmservice_watch_events", "Watch events", "kind")
        self._cached = gauge("llmservice_cache_objects", "Objects known from the watches", "kind")
        self._diverged = counter(
            "llmservice_cache_divergence", "Objects the watches were wrong about", "kind"
        )
        self._applies = counter(
            "llmservice_apply", "Children looked at, by what was done", "kind", "result"
        )
        self._drift = counter(
            "llmservice_drift_corrections", "Children restored after a foreign change", "kind"
        )
        self._watch_restarts = counter("llmservice_watch_restarts", "Restarts of all watches")
        self._loop_lag = gauge("llmservice_event_loop_lag_seconds", "Delay of the event loop")
        self._conditions = gauge(
            "llmservice_status_condition",
            "1 for the status each condition has",
            "namespace",
            "name",
            "type",
            "status",
        )
        self._replicas = gauge(
            "llmservice_replicas", "Replicas by state", "namespace", "name", "state"
        )
        gauge("llmservice_build_info", "Always 1", "version").labels(
            version("llmservice-operator")
        ).set(1)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    # What the work queue tells.

    def added(self) -> None:
        self._adds.labels(CONTROLLER).inc()

    def started(self, waited_seconds: float) -> None:
        self._waited.labels(CONTROLLER).observe(waited_seconds)

    def finished(self, seconds: float, result: str) -> None:
        counted = "error" if result == "timeout" else result
        self._passes.labels(CONTROLLER, counted).inc()
        self._pass_seconds.labels(CONTROLLER).observe(seconds)
        self._worked.labels(CONTROLLER).observe(seconds)
        if counted == "error":
            self._pass_errors.labels(CONTROLLER).inc()
        if result == "timeout":
            self._pass_timeouts.labels(CONTROLLER).inc()

    def retried(self) -> None:
        self._retries.labels(CONTROLLER).inc()

    def read_queue(self, queue: QueueState, workers: int) -> None:
        """Read the queue whenever the metrics are asked for."""
        self._workers.labels(CONTROLLER).set(workers)
        self._depth.labels(CONTROLLER).set_function(lambda: len(queue))
        self._active.labels(CONTROLLER).set_function(queue.busy)
        self._unfinished.labels(CONTROLLER).set_function(queue.unfinished_seconds)
        self._longest.labels(CONTROLLER).set_function(queue.longest_running_seconds)

    # What the API client, the watches and the passes tell.

    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        self._requests.labels(code, method, host).inc()
        self._request_seconds.labels(method, host).observe(seconds)

    def watch_event(self, plural: str) -> None:
        self._events.labels(plural).inc()

    def watches_restarted(self) -> None:
        self._watch_restarts.inc()

    def read_cache(self, plural: str, count: Callable[[], float]) -> None:
        self._cached.labels(plural).set_function(count)

    def cache_diverged(self, plural: str) -> None:
        self._diverged.labels(plural).inc()

    def read_leadership(self, lease_name: str, holding: Callable[[], bool]) -> None:
        self._leading.labels(lease_name).set_function(lambda: float(holding()))

    def applied(self, kind: str, result: str) -> None:
        """Result: created, changed, noop or deleted."""
        self._applies.labels(kind, result).inc()

    def drift_corrected(self, kind: str) -> None:
        self._drift.labels(kind).inc()

    def terminal_error(self) -> None:
        self._terminal_errors.labels(CONTROLLER).inc()

    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.set(seconds)

    def service_seen(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        for condition in status.get("conditions", ()):
            for value in ("True", "False", "Unknown"):
                series = self._conditions.labels(namespace, name, condition["type"], value)
                series.set(float(condition["status"] == value))
        for state in ("replicas", "readyReplicas"):
            self._replicas.labels(namespace, name, state).set(status.get(state, 0))

    def service_gone(self, namespace: str, name: str) -> None:
        """Drop the service's series, so that dead services neither alert nor fill the memory."""
        gone = {"namespace": namespace, "name": name}
        self._conditions.remove_by_labels(gone)
        self._replicas.remove_by_labels(gone)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=PASS_SECONDS)


class Health:
    """Answers the probes. Not ready is a list of reasons, each a sentence that says what to do."""

    def __init__(self, longest_running_seconds: Callable[[], float]) -> None:
        self._longest_running_seconds = longest_running_seconds
        self._not_ready: dict[str, str] = {"watches": "the watches have not started yet"}

    def not_ready(self, part: str, reason: str) -> None:
        self._not_ready[part] = reason

    def ready(self, part: str) -> None:
        self._not_ready.pop(part, None)

    def why_not_ready(self) -> list[str]:
        return sorted(self._not_ready.values())

    def why_not_alive(self) -> list[str]:
        """A blocked event loop needs no reason here: it cannot answer the probe at all."""
        age = self._longest_running_seconds()
        return [f"a pass has been running for {age:.0f} s"] if age > STUCK_SECONDS else []


def create_app(metrics: Metrics, health: Health) -> web.Application:
    """Return the web application with /livez, /readyz and /metrics."""

    def probe(reasons: Callable[[], list[str]]) -> Callable[[web.Request], Any]:
        async def answer(_: web.Request) -> web.Response:
            found = reasons()
            body = {"status": "not ok" if found else "ok", "reasons": found}
            return web.json_response(body, status=503 if found else 200)

        return answer

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/livez", probe(health.why_not_alive))
    app.router.add_get("/readyz", probe(health.why_not_ready))
    app.router.add_get("/metrics", show_metrics)
    return app


async def start_server(app: web.Application, port: int) -> web.AppRunner:
    """Serve the application on all addresses; the caller cleans the runner up."""
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, host=None, port=port).start()
    return runner


async def measure_loop_lag(metrics: Metrics, period_seconds: float = 1.0) -> None:
    """Measure for ever how late the event loop wakes a sleeper up."""
    while True:
        started = time.monotonic()
        await asyncio.sleep(period_seconds)
        metrics.loop_lagged(max(0.0, time.monotonic() - started - period_seconds))
