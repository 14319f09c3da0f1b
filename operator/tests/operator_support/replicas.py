"""Replicas of the operator that lose the Lease one after another, each behind a proxy of its own.

The user agent of a request identifies the replica that sent it. The wall clocks of the replicas
differ by up to two hours.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import libfaketime

from llmservice_operator.kinds import LEASES
from operator_support.fault_proxy import Drop, FaultProxy, Seen, fault_proxy
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, OperatorProcess, Running
from shared_support.waiting import eventually

LEASE = "llmservice-operator"
CLOCKS = (timedelta(), timedelta(hours=1), timedelta(hours=-1))
"""Errors of the replicas' wall clocks, in the order in which the replicas start."""


class WrongClock(OperatorProcess):
    """An operator whose wall clock differs from the machine's by `error`.

    libfaketime changes the time that the C library returns. The monotonic clock stays right.
    """

    def __init__(self, error: timedelta, log: Path, namespace: str, **settings: str) -> None:
        self._error = error
        super().__init__(log, namespace, **settings)

    def _begin(self, variables: Mapping[str, str]) -> Running:
        _, faked = libfaketime.get_reload_information()
        seconds = f"{self._error.total_seconds():+.0f}s"
        return super()._begin({**variables, **faked, "FAKETIME": seconds})


@dataclass
class Replica:
    proxy: FaultProxy
    process: OperatorProcess
    stack: ExitStack
    clock: timedelta
    """Error of the replica's wall clock. It is positive if the clock is ahead."""

    def is_called(self, identity: str) -> bool:
        return any(f"({identity})" in each.agent for each in self.proxy.requests()[:1])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def cut_off(self) -> None:
        """Cut the connection between the replica and the API server in both directions."""
        self.proxy.faults.on_request = lambda _: Drop()
        self.proxy.end_watches()


class Replicas:
    def __init__(self, api: Api, namespace: str, folder: Path, number: int = 3) -> None:
        self._api = api
        self._namespace = namespace
        self._folder = folder
        self._number = number
        self._running: list[Replica] = []
        self._ended: list[Seen] = []
        self._started = 0
        self._clocks = cycle(CLOCKS)

    def fill_up(self) -> None:
        """Replace the replicas that have ended, and wait until all are ready."""
        for replica in [each for each in self._running if not each.process.is_running()]:
            self._end(replica)
        while len(self._running) < self._number:
            self._start()
        for replica in self._running:
            replica.process.until_ready()

    def leader(self) -> Replica:
        """Wait for a leader that dates its Lease by its own wall clock, and return the leader."""

        def found() -> Replica | None:
            lease = self._lease()["spec"]
            holder = lease.get("holderIdentity") or "nobody"
            leader = next((each for each in self._running if each.is_called(holder)), None)
            error = datetime.fromisoformat(lease["renewTime"]) - datetime.now(UTC)
            is_dated = leader and abs(error - leader.clock) < timedelta(minutes=5)
            return leader if is_dated else None

        return eventually(found, describe="a leader that dates its Lease by its own clock")

    def _lease(self) -> dict[str, Any]:
        return self._api.get(LEASES, self._namespace, LEASE)

    def delete_lease(self) -> None:
        self._api.delete(LEASES, self._namespace, LEASE)

    def skew(self, by: timedelta) -> None:
        """Change the times of the Lease as if the clock of its leader were wrong by this much."""
        moment = (datetime.now(UTC) + by).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        times = {"renewTime": moment, "acquireTime": moment}
        self._api.patch(LEASES, self._namespace, LEASE, {"spec": times})

    def writes(self) -> list[Seen]:
        """Return the accepted writes of all replicas so far, in the order in which they came."""
        seen = [*self._ended, *(each for it in self._running for each in it.proxy.writes())]
        accepted = (each for each in seen if each.status is not None and 200 <= each.status < 300)
        return sorted(accepted, key=lambda each: each.at)

    def end_all(self) -> None:
        for replica in list(self._running):
            self._end(replica)

    def _start(self) -> None:
        stack, self._started = ExitStack(), self._started + 1
        proxy = stack.enter_context(fault_proxy())
        folder = self._folder / str(self._started)
        folder.mkdir()
        clock = next(self._clocks)
        start = partial(WrongClock, clock) if clock else ForkedOperator
        process = start(
            folder / "log",
            self._namespace,
            WATCH_NAMESPACES=self._namespace,
            KUBECONFIG=proxy.kubeconfig(folder),
        )
        self._running.append(Replica(proxy, process, stack, clock))

    def _end(self, replica: Replica) -> None:
        if replica.process.is_running():
            replica.process.kill()
        self._running.remove(replica)
        self._ended += replica.proxy.writes()
        replica.stack.close()


@contextmanager
def replicas(api: Api, namespace: str, folder: Path) -> Iterator[Replicas]:
    running = Replicas(api, namespace, folder)
    try:
        running.fill_up()
        yield running
    finally:
        running.end_all()
