"""Exposes the statuses of the services as Prometheus gauges."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_CONDITION_STATUSES = ("True", "False", "Unknown")
_REPLICA_STATES = ("replicas", "readyReplicas")


class ServiceCollector(Collector):
    """Builds the series of every service at each scrape.

    Between scrapes, it keeps only the values of the series, because the series of one service would
    take as much memory as the objects of the service.
    """

    def __init__(self) -> None:
        self._conditions: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
        """Type and status of each condition, by the namespace and name of the service."""
        self._replicas: dict[tuple[str, str], tuple[int, ...]] = {}
        """Numbers of replicas in the order of _REPLICA_STATES, by the namespace and name of the
        service."""

    def see(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Keep the values of a service's status for the next scrapes."""
        found = status.get("conditions", ())
        self._conditions[namespace, name] = tuple((each["type"], each["status"]) for each in found)
        self._replicas[namespace, name] = tuple(status.get(state, 0) for state in _REPLICA_STATES)

    def forget(self, namespace: str, name: str) -> None:
        """Drop the series of a service, so that deleted services neither raise alerts nor fill the
        memory.
        """
        self._conditions.pop((namespace, name), None)
        self._replicas.pop((namespace, name), None)

    def collect(self) -> Iterator[Metric]:
        """Yield the series. A thread may call this method during passes, so it works on copies."""
        family = GaugeMetricFamily(
            "llmservice_status_condition",
            "1 for the status each condition has",
            labels=("namespace", "name", "type", "status"),
        )
        for service, conditions in list(self._conditions.items()):
            for type_, present in conditions:
                for status in _CONDITION_STATUSES:
                    family.add_metric((*service, type_, status), float(status == present))
        yield family
        family = GaugeMetricFamily(
            "llmservice_replicas", "Replicas by state", labels=("namespace", "name", "state")
        )
        for service, numbers in list(self._replicas.items()):
            for state, number in zip(_REPLICA_STATES, numbers, strict=True):
                family.add_metric((*service, state), number)
        yield family
