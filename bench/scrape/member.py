"""A metrics server in real time, without an API server: `python -m scrape.member PLAN`.

PLAN is a Plan as JSON. The process prints, once a second, its state as a line of JSON.
"""

import asyncio
import json
import math
import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from aiohttp import web

from llmservice_operator.engine_metrics import EngineMetrics, UsageReport
from llmservice_operator.garbage import collect_rarely
from llmservice_operator.kinds import LLMSERVICES, PODS
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.peers import PeerClient, Peers
from llmservice_operator.metrics_server.process import next_round
from llmservice_operator.metrics_server.registration import NAMESPACES_ONLY
from llmservice_operator.metrics_server.report_api import create_report_app
from llmservice_operator.metrics_server.waking import Waking
from llmservice_operator.sharding import Shares
from scrape.cluster import cache_of


@dataclass(frozen=True)
class Plan:
    """The cluster, and the place of a metrics server among the others."""

    services: int
    pods: int
    silent: int
    engine_port: int
    me: str
    """Host and port of the metrics server."""
    members: tuple[str, ...]


@dataclass
class State:
    """What a metrics server has done so far."""

    rounds: int = 0
    cpu_seconds: float = 0.0
    rss_mib: float = 0.0
    oldest_answer_seconds: float = math.inf
    """Age of the oldest last answer of a replica that answers."""
    learned: int = 0
    followed: int = 0
    known: int = 0
    """Number of services with a known load, of all services."""
    newest_at: float = 0.0
    oldest_at: float = 0.0
    """Times of the newest and the oldest report of any service."""


class Engines(EngineMetrics):
    """Asks the simulated replicas, which listen at one port."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._engine_port = port
        self.answered_at: dict[str, float] = {}

    async def report(self, address: str, port: int = 0) -> UsageReport:
        found = await super().report(address, self._engine_port)
        self.answered_at[address] = time.time()
        return found


def rss_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


async def run(plan: Plan) -> None:
    """Measure for ever."""
    cache = cache_of(plan.services, plan.pods, plan.silent)
    engines, client = Engines(plan.engine_port), PeerClient()
    shares = Shares(plan.me, frozenset(plan.members))
    fleet = Fleet(
        lambda: cache.of_kind(LLMSERVICES),
        lambda: cache.of_kind(PODS),
        engines,
        lambda: NAMESPACES_ONLY,
        {},
        shares=lambda: shares,
        silent=lambda: peers.silent,
    )

    async def next_held(address: str, seconds: float) -> None:
        await asyncio.Event().wait()

    waking = Waking(lambda: [], lambda: [], next_held, fleet.held_percent)
    peers = Peers(lambda: shares, client.reports, client.wakes, fleet.take, waking.learn)
    runner = web.AppRunner(create_report_app(fleet), access_log=None)
    await runner.setup()
    host, _, port = plan.me.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    state = State()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(peers.run())
        tasks.create_task(_rounds(fleet, state))
        while True:
            await asyncio.sleep(1)
            _update(state, fleet, engines)
            print(json.dumps(asdict(state)), flush=True)


async def _rounds(fleet: Fleet, state: State) -> None:
    while True:
        await fleet.round(await next_round())
        state.rounds += 1


def _update(state: State, fleet: Fleet, engines: Engines) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    state.cpu_seconds = usage.ru_utime + usage.ru_stime
    state.rss_mib = rss_mib()
    state.learned, state.followed = fleet.number_of_services()
    reports = fleet.reports.values()
    state.known = sum(it.demand_percent is not None for it in reports)
    state.newest_at = max((it.at for it in reports), default=0.0)
    state.oldest_at = min((it.at for it in reports), default=0.0)
    now = time.time()
    state.oldest_answer_seconds = now - min(engines.answered_at.values(), default=-math.inf)


if __name__ == "__main__":
    collect_rarely()
    with suppress(KeyboardInterrupt):
        asyncio.run(run(Plan(**json.loads(sys.argv[1]))))
