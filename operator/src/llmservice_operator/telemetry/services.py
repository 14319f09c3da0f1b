"""Exposes the specs and the statuses of the services as Prometheus gauges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmservice_operator import names

if TYPE_CHECKING:  # a router shows none of these metrics, and needs no model of the API
    from llmservice_operator.api.spec import LLMServiceSpec

_SERVICE = ("namespace", names.METRIC_SERVICE_LABEL)


class _SpecFacts(NamedTuple):
    """The part of a spec that is shown. An unset value is None, and is not shown."""

    model: str
    gpus_per_replica: int
    min_replicas: int | None
    max_replicas: int | None
    ttft_seconds: float | None
    itl_seconds: float | None
    objective: float | None


class _StatusFacts(NamedTuple):
    """The part of a status that is shown."""

    conditions: tuple[tuple[str, str, str], ...]
    """Type, status and reason of each condition."""
    replicas: int
    ready: int
    updated: int
    desired: int | None
    gpus_desired: int | None
    gpu_price: float | None
    engine: tuple[str, str] | None
    """vLLM version and image."""


_NUMBERS: tuple[tuple[str, str, Callable[[_StatusFacts], float | None]], ...] = (
    ("replicas", "Replicas that exist", lambda it: it.replicas),
    ("replicas_ready", "Ready replicas", lambda it: it.ready),
    ("replicas_updated", "Replicas of the current spec", lambda it: it.updated),
    ("replicas_desired", "Replicas that should exist", lambda it: it.desired),
    ("gpus_desired", "GPUs of the replicas that should exist", lambda it: it.gpus_desired),
    ("gpu_dollars_per_hour", "Price of one GPU per hour", lambda it: it.gpu_price),
)


class _Service(NamedTuple):
    spec: _SpecFacts | None
    """None while no valid spec has been seen."""
    status: _StatusFacts


class ServiceCollector(Collector):
    """Builds the series of every service at each scrape.

    Between scrapes, it keeps only the values of the series, because the series of one service would
    take as much memory as the objects of the service.
    """

    def __init__(self) -> None:
        self._services: dict[tuple[str, str], _Service] = {}
        """The values of each service, by its namespace and name."""

    def see(
        self, namespace: str, name: str, status: Mapping[str, Any], spec: LLMServiceSpec | None
    ) -> None:
        """Keep the values of a service for the next scrapes.

        Without a valid spec, the values of the last valid one stay, because the replicas still run
        with it.
        """
        before = self._services.get((namespace, name))
        facts = _facts_of(spec) if spec is not None else before.spec if before else None
        self._services[namespace, name] = _Service(facts, _facts_in(status))

    def forget(self, namespace: str, name: str) -> None:
        """Drop the series of a service, so that deleted services neither raise alerts nor fill the
        memory.
        """
        self._services.pop((namespace, name), None)

    def collect(self) -> Iterator[Metric]:
        """Yield the series. A thread may call this method during passes, so it works on a copy."""
        services = list(self._services.items())
        yield from _of_statuses(services)
        yield from _of_specs([(key, it.spec) for key, it in services if it.spec is not None])
        gpus = _gauge("gpus", "GPUs of the replicas that exist")
        info = _gauge("info", "Always 1", "model", "engine_version", "image")
        for key, it in services:
            if it.spec is not None:
                gpus.add_metric(key, it.spec.gpus_per_replica * it.status.replicas)
                if it.status.engine is not None:
                    info.add_metric((*key, it.spec.model, *it.status.engine), 1)
        yield from (gpus, info)


def _of_statuses(services: list[tuple[tuple[str, str], _Service]]) -> Iterator[Metric]:
    condition = _gauge(
        "status_condition", "1 for the present status of each condition", "type", "status", "reason"
    )
    for key, it in services:
        for each in it.status.conditions:
            condition.add_metric((*key, *each), 1)
    yield condition
    for name, text, read in _NUMBERS:
        family = _gauge(name, text)
        for key, it in services:
            if (value := read(it.status)) is not None:
                family.add_metric(key, value)
        yield family


def _of_specs(specs: list[tuple[tuple[str, str], _SpecFacts]]) -> Iterator[Metric]:
    bounds = (
        ("replicas_min", "Smallest number of replicas that autoscaling may choose"),
        ("replicas_max", "Largest number of replicas that autoscaling may choose"),
    )
    lowest, highest = (_gauge(*each) for each in bounds)
    objective = _gauge("slo_objective_ratio", "Share of the requests that should meet the SLO")
    limits = _gauge("slo_limit_seconds", "Limit of a latency in the SLO", "slo")
    for key, it in specs:
        values = (
            (lowest, key, it.min_replicas),
            (highest, key, it.max_replicas),
            (objective, key, it.objective),
            (limits, (*key, "ttft"), it.ttft_seconds),
            (limits, (*key, "itl"), it.itl_seconds),
        )
        for family, labels, value in values:
            if value is not None:
                family.add_metric(labels, value)
    yield from (lowest, highest, objective, limits)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"llmservice_{name}", text, labels=(*_SERVICE, *labels))


def _facts_of(spec: LLMServiceSpec) -> _SpecFacts:
    scaling, slo = spec.autoscaling, spec.objectives
    return _SpecFacts(
        model=spec.model.uri,
        gpus_per_replica=spec.gpus,
        min_replicas=scaling.min_replicas if scaling else None,
        max_replicas=scaling.max_replicas if scaling else None,
        ttft_seconds=_seconds(slo.ttft_milliseconds),
        itl_seconds=_seconds(slo.itl_milliseconds),
        objective=slo.objective_percent / 100 if slo.is_limited else None,
    )


def _facts_in(status: Mapping[str, Any]) -> _StatusFacts:
    _, _, desired = (status.get("ready") or "").partition("/")
    engine, cost = status.get("engine"), status.get("cost")
    return _StatusFacts(
        conditions=tuple(
            (each["type"], each["status"], each["reason"]) for each in status.get("conditions", ())
        ),
        replicas=status.get("replicas", 0),
        ready=status.get("readyReplicas", 0),
        updated=status.get("updatedReplicas", 0),
        desired=int(desired) if desired else None,
        gpus_desired=status.get("gpus"),
        gpu_price=float(cost["perGpuHour"]) if cost else None,
        engine=(engine["version"], engine["image"]) if engine else None,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
