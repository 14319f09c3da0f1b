"""Tests how many replicas a service gets whose router must refuse requests."""

import math
from dataclasses import dataclass, field

import pytest

from llmservice_operator.scaling.signals import HoldCounters
from operator_support.scaling import TICK, Server, Service, service

COLD_START_TICKS = 12
WINDOW_TICKS = 18
"""Ticks for which a high recommendation prevents a scale-down."""
MOST_HELD, HOLD_TICKS = 300, 6


@dataclass
class Overload:
    """A service whose replicas, router and autoscaler are simulated in ticks."""

    sustained: float
    """Requests per second that one replica serves."""
    running: Service = field(default_factory=lambda: service(2))
    starting: list[int] = field(default_factory=list)
    """Ticks until each starting replica is Ready."""
    recommended: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    """Number of requests that wait, by the tick in which they arrived, oldest first."""

    def __post_init__(self) -> None:
        self.running.held, self.running.hold_counters = 0, HoldCounters()

    @property
    def replicas(self) -> int:
        return len(self.running.servers) + len(self.starting)

    def tick(self, rate: float, repeated: int) -> None:
        """Let requests arrive. A client repeats a refused request `repeated` times in a tick."""
        running = self.running
        self._start()
        arrived = round(rate * TICK)
        room = round(self.sustained * TICK * len(running.servers))
        old = sum(self.held)
        released = min(room, old + arrived)
        direct = max(released - old, 0)
        waits = min(arrived - direct, MOST_HELD - old + (released - direct))
        is_full = waits < arrived - direct
        refused = arrived - direct - waits + (repeated if is_full else 0)
        left_over = released - direct
        for i, number in enumerate(self.held):
            self.held[i] -= min(number, left_over)
            left_over -= min(number, left_over)
        self.held.append(waits)
        timed_out = self.held.pop(0) if len(self.held) > HOLD_TICKS else 0
        running.wait(waits, released=released - direct, timed_out=timed_out, refused=refused)
        seen = running.run(TICK, released / TICK)
        if seen.demand_percent is not None:
            self._scale(math.ceil(seen.demand_percent / 85))

    def _start(self) -> None:
        self.starting = [ticks - 1 for ticks in self.starting]
        servers = self.running.servers
        for _ in range(self.starting.count(0)):
            now = self.running.now
            began = now - COLD_START_TICKS * TICK
            servers.append(Server(f"pod-{now}-{len(servers)}", began, ready_at=now, started=now))
        self.starting = [ticks for ticks in self.starting if ticks > 0]

    def _scale(self, wanted: int) -> None:
        self.recommended.append(wanted)
        kept = max(self.recommended[-WINDOW_TICKS:])
        if wanted > self.replicas:
            self.starting += [COLD_START_TICKS] * (wanted - self.replicas)
        while self.starting and self.replicas > kept:
            self.starting.pop()
        del self.running.servers[max(kept - len(self.starting), 1) :]


@pytest.mark.parametrize("repeated", [0, 1_000_000])
def test_an_overload_gets_the_replicas_that_it_needs_however_often_requests_are_repeated(
    repeated: int,
) -> None:
    calm = service(2).run(300, 14)
    assert calm.capacity is not None
    overload = Overload(calm.capacity)
    for _ in range(60):
        overload.tick(14, 0)
    assert overload.replicas <= 2
    rate = 6 * calm.capacity
    most = 0
    for _ in range(200):
        overload.tick(rate, repeated)
        most = max(most, overload.replicas)
    needed = math.ceil(6 / 0.85)
    assert overload.replicas == pytest.approx(needed, abs=1)
    assert overload.running.held == 0
    assert most <= 2 * needed
