"""The Prometheus metrics of a process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from llmservice_operator.telemetry.services import ServiceCollector

if TYPE_CHECKING:  # a router shows none of these metrics, and needs no model of the API
    from llmservice_operator.api.spec import LLMServiceSpec

CONTROLLER = "llmservice"
"""Value of the `controller` and `name` labels. A process has one controller."""

PASS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class QueueState(Protocol):
    """The part of the work queue that is shown in gauges."""

    def __len__(self) -> int: ...

    def busy(self) -> int: ...

    def unfinished_seconds(self) -> float: ...

    def longest_running_seconds(self) -> float: ...


class ProcessMetrics:
    """The metrics that every process with an API client and watches has.

    A metric that client-go or controller-runtime also has gets the same name and labels, so that
    dashboards for these can be used.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._requests = counter("rest_client_requests", "API requests", "code", "method", "host")
        self._request_seconds = histogram(
            "rest_client_request_duration_seconds", "Length of an API request", "verb", "host"
        )
        self._events = counter("llmservice_watch_events", "Watch events", "kind")
        self._cached = gauge("llmservice_cache_objects", "Objects known from the watches", "kind")
        self._unreadable = gauge(
            "llmservice_unreadable_objects", "Objects skipped because they make no sense", "kind"
        )
        self._diverged = counter(
            "llmservice_cache_divergence", "Objects the watches were wrong about", "kind"
        )
        self._watch_restarts = counter("llmservice_watch_restarts", "Restarts of all watches")
        self._loop_lag = histogram("llmservice_event_loop_lag_seconds", "Delay of the event loop")
        self._read: list[tuple[Gauge, Callable[[], float]]] = []
        """Gauges, each with the function that returns its value at a scrape."""
        gauge("llmservice_build_info", "Always 1", "version").labels(
            version("llmservice-operator")
        ).set(1)

    async def render(self) -> bytes:
        """Return all metrics as text.

        The text of thousands of services takes a second of CPU time. A thread writes it, so that a
        scrape does not block the event loop. The gauges of the state of the process are set before
        that, in the event loop.
        """
        for gauge, value in self._read:
            gauge.set(value())
        return await asyncio.to_thread(generate_latest, self.registry)

    def request_finished(self, method: str, host: str, code: str, seconds: float) -> None:
        self._requests.labels(code, method, host).inc()
        self._request_seconds.labels(method, host).observe(seconds)

    def watch_event(self, plural: str) -> None:
        self._events.labels(plural).inc()

    def watches_restarted(self) -> None:
        self._watch_restarts.inc()

    def read_cache(
        self, plural: str, count: Callable[[], float], unreadable: Callable[[], float]
    ) -> None:
        """Register the functions that return the numbers of known and of unreadable objects of a
        kind. They are called at every scrape.
        """
        self._read.append((self._cached.labels(plural), count))
        self._read.append((self._unreadable.labels(plural), unreadable))

    def cache_diverged(self, plural: str) -> None:
        self._diverged.labels(plural).inc()

    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=PASS_SECONDS)


class Metrics(ProcessMetrics):
    """All metrics of the operator: those of the process, of the work queue and of the services."""

    def __init__(self) -> None:
        super().__init__()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._leading = gauge("leader_election_master_status", "1 on the leader", "name")
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
        self._applies = counter(
            "llmservice_apply", "Children looked at, by what was done", "kind", "result"
        )
        self._drift = counter(
            "llmservice_drift_corrections", "Children restored after a foreign change", "kind"
        )
        self._services = ServiceCollector()
        self.registry.register(self._services)

    def read_leadership(self, lease_name: str, holding: Callable[[], bool]) -> None:
        self._read.append((self._leading.labels(lease_name), lambda: float(holding())))

    # Called by the work queue.

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
        """Register the queue, whose gauges are read at every scrape."""
        self._workers.labels(CONTROLLER).set(workers)
        self._read += (
            (self._depth.labels(CONTROLLER), lambda: len(queue)),
            (self._active.labels(CONTROLLER), queue.busy),
            (self._unfinished.labels(CONTROLLER), queue.unfinished_seconds),
            (self._longest.labels(CONTROLLER), queue.longest_running_seconds),
        )

    # Called by the passes.

    def applied(self, kind: str, result: str) -> None:
        """Count one operation on a child by its result: created, changed, noop, paused or
        deleted.
        """
        self._applies.labels(kind, result).inc()

    def drift_corrected(self, kind: str) -> None:
        self._drift.labels(kind).inc()

    def terminal_error(self) -> None:
        self._terminal_errors.labels(CONTROLLER).inc()

    def service_seen(
        self,
        namespace: str,
        name: str,
        status: Mapping[str, Any],
        spec: LLMServiceSpec | None = None,
    ) -> None:
        """Show the spec and the status of a service; drop the series of conditions that it no
        longer has. Without a spec, the values of the last one stay.
        """
        self._services.see(namespace, name, status, spec)

    def service_gone(self, namespace: str, name: str) -> None:
        """Drop the service's series."""
        self._services.forget(namespace, name)


async def measure_loop_lag(metrics: ProcessMetrics, period_seconds: float = 0.1) -> None:
    """Measure, until cancelled, the delay with which the event loop resumes a sleeping task.

    A blockage of the event loop that is longer than the period always shows in the measurement.
    """
    while True:
        started = time.monotonic()
        await asyncio.sleep(period_seconds)
        metrics.loop_lagged(max(0.0, time.monotonic() - started - period_seconds))
