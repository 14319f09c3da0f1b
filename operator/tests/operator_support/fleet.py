"""Simulated services and pods for the metrics server's rounds, without sockets and clocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.accelerator_class import AcceleratorClass
from llmservice_operator.cluster import Key
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.registration import NAMESPACES_ONLY
from llmservice_operator.metrics_server.scrapes import Engines
from llmservice_operator.scaling.latency import LATENCY_BUCKETS, Latencies
from llmservice_operator.scaling.signals import RouterPod, RouterSnapshot
from llmservice_operator.scaling.step_model import StepModel
from llmservice_operator.sharding import Ring, Shares
from operator_support.processes import make_service
from operator_support.scaling import TRUTH, Server, load

START = 1_700_000_000.0
KEY = ("ml", "qwen")
TICK = 5.0


def delays(bucket: int, count: float) -> tuple[float, ...]:
    return tuple(count if i == bucket else 0.0 for i in range(LATENCY_BUCKETS))


@dataclass
class Pods:
    """Pods of one service, each with a simulated model server. Implements the fleet's `Engines`."""

    servers: dict[str, Server] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    phases: dict[str, str] = field(default_factory=dict)
    now: float = START
    model: StepModel = TRUTH

    def add(self, name: str, *, is_ready: bool = True, phase: str = "ready") -> None:
        server = Server(name, created=self.now, ready_at=self.now, started=self.now)
        self.servers[name] = replace(server, is_ready=is_ready)
        self.phases[name] = phase

    def manifests(self) -> list[Manifest]:
        return [self._pod(server) for server in self.servers.values()]

    def _pod(self, server: Server) -> Manifest:
        metadata: dict[str, Any] = {
            "namespace": KEY[0],
            "name": server.name,
            "labels": {names.SERVICE_LABEL: KEY[1]},
            "creationTimestamp": timestamp(server.created),
        }
        if server.is_draining:
            metadata["deletionTimestamp"] = timestamp(self.now)
        ready = {
            "type": "Ready",
            "status": str(server.is_ready),
            "lastTransitionTime": timestamp(server.ready_at),
        }
        status = {"phase": "Running", "podIP": server.name, "conditions": [ready]}
        return {"metadata": metadata, "status": status}

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None:
        if address in self.silent:
            return None
        server = self.servers[address]
        snapshot = replace(server, is_ready=True).report(self.now).snapshot
        assert snapshot is not None
        done = server.counters.finished
        downloads = self.phases[address] == "downloading"
        return EngineAnswer(
            phase=self.phases[address],
            elapsed_seconds=self.now - server.started,
            snapshot=snapshot,
            latencies=Latencies(delays(28, done), delays(20, done)),
            gpu_duty_cycle_percent=90.0,
            downloaded_bytes=5 if downloads else None,
            total_bytes=10 if downloads else None,
        )

    def serve(self, rate: float) -> None:
        ready = [it for it in self.servers.values() if it.is_ready and not it.is_draining]
        for server in ready:
            server.serve(load(rate / len(ready), TICK, model=self.model))


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def service(**status: Any) -> Manifest:
    made = make_service(KEY[1], KEY[0])
    made["metadata"]["uid"] = "uid-1"
    return {**made, "status": status}


@dataclass
class BadConnection:
    """A metrics server's connection to the pods. It fails for the pods in `silent`."""

    pods: Pods
    silent: set[str] = field(default_factory=set)

    async def ask(self, address: str, *, is_ready: bool) -> EngineAnswer | None:
        return None if address in self.silent else await self.pods.ask(address, is_ready=is_ready)


@dataclass
class World:
    pods: Pods = field(default_factory=Pods)
    services: list[Manifest] = field(default_factory=lambda: [service()])
    classes: Mapping[str, AcceleratorClass] = field(default_factory=dict)
    held: dict[Key, int] = field(default_factory=dict)
    """Requests that the routers of each service hold."""
    has_old_router: bool = False
    """Whether the routers are too old to be watched."""
    ready: frozenset[str] = frozenset()
    """Metrics servers that are Ready; none means that each one is alone."""
    silent: set[str] = field(default_factory=set)
    """Metrics servers that do not answer the others."""
    fleets: list[tuple[str, Fleet]] = field(default_factory=list)
    """All fleets, with the names of their metrics servers."""

    def learner_and_follower(self, engines: Engines | None = None) -> tuple[Fleet, Fleet]:
        """Return both metrics servers of a release; `engines` is the follower's connection."""
        self.ready = frozenset({"one", "other"})
        learner, follower = Ring(self.ready).keepers(KEY)
        return self.fleet(name=learner), self.fleet(engines, name=follower)

    def fleet(self, engines: Engines | None = None, *, name: str = "alone") -> Fleet:
        made = Fleet(
            lambda: self.services,
            self.pods.manifests,
            engines or self.pods,
            lambda: NAMESPACES_ONLY,
            self.classes,
            ask_routers=self.ask_routers,
            shares=lambda: Shares(name, self.ready),
            silent=lambda: self.silent - {name},
        )
        self.fleets.append((name, made))
        return made

    async def ask_routers(self) -> Mapping[Key, tuple[RouterPod, ...]]:
        watched = not self.has_old_router
        return {
            key: (RouterPod("router", RouterSnapshot(self.pods.now, held, can_be_watched=watched)),)
            for key, held in self.held.items()
        }

    async def run(self, seconds: float, rate: float, *fleets: Fleet) -> None:
        """Let time pass. In each tick, each fleet makes a round and then tells the others."""
        names = {id(fleet): name for name, fleet in self.fleets}
        for _ in range(int(seconds / TICK)):
            self.pods.now += TICK
            self.pods.serve(rate)
            for fleet in fleets:
                await fleet.round(self.pods.now)
                told = fleet.computed_for({names[id(fleet)], *self.silent})
                for other in fleets:
                    if other is not fleet and names[id(fleet)] not in self.silent:
                        other.take(told)
