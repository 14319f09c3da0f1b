"""Lists the cells of the benchmark and serves them: a trace, a number of replicas, and a cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from routing.fleet import Policy, Service
from routing.ours import Ours
from routing.peers import Bound, BoundedHash, LeastRequests, LeastWork, PrefixTree
from routing.traces import Trace, agents, mooncake
from scaling.hardware import H100

REPLICAS = (4, 8, 32)
CACHED_BLOCKS = (820, 4000)
"""Blocks in the cache of a replica: the accelerator's memory alone, and main memory in addition."""
TRACES = ("mooncake", "agents")
REQUESTS = 6000
"""Requests of a cell at most."""
BOUND_PERCENT, TOLERANCE = 85.0, 2.0
"""Each cell is loaded so that the best foresight gives this share of the requests their first token
in time."""
SEARCH_STEPS = 12
FORESIGHTS = (0.0, 4.0, 16.0, 64.0)
"""Weights of a prompt's own work with which foresight is tried. The best one is the bound."""

OURS, BOUND = "ours", "bound"
PEERS: dict[str, Callable[[], Policy]] = {
    "prefix tree": PrefixTree,
    "bounded hash": BoundedHash,
    "least requests": LeastRequests,
    "least work": LeastWork,
}


@dataclass(frozen=True)
class Cell:
    trace: str
    replicas: int
    cached_blocks: int

    @property
    def name(self) -> str:
        return f"{self.trace} {self.replicas}x{self.cached_blocks}"


@dataclass(frozen=True)
class Result:
    """Figures of one policy in one cell."""

    attained: float
    """Percentage of the requests with a first token in time."""
    saved: float
    """Percentage of the prompt tokens that caches saved."""


def cells() -> list[Cell]:
    return [Cell(t, n, c) for t in TRACES for n in REPLICAS for c in CACHED_BLOCKS]


@cache
def trace_of(name: str, path: Path | None) -> Trace:
    """Return a trace. `path` is the file of the Mooncake trace; without it, that trace raises
    ValueError.
    """
    if name == "agents":
        return agents(seed=1).first(REQUESTS)
    if path is None:
        raise ValueError("the Mooncake trace needs the path of its file")
    return mooncake(path).first(REQUESTS)


def serve(cell: Cell, policy: Policy, trace: Trace) -> Service:
    return Service(trace, H100, cell.replicas, cell.cached_blocks).run(policy)


def bound_of(cell: Cell, trace: Trace) -> Result:
    """Return the best result of foresight."""
    found = [_result(serve(cell, Bound(weight), trace)) for weight in FORESIGHTS]
    return max(found, key=lambda each: each.attained)


def loaded(cell: Cell, path: Path | None) -> tuple[Trace, Result]:
    """Return the cell's trace at the speed at which the bound attains BOUND_PERCENT, and the
    bound.
    """
    whole = trace_of(cell.trace, path)
    # Requests per second for each replica, from far too few to far too many.
    rate = len(whole.arrival) / float(whole.arrival[-1]) / cell.replicas
    low, high = 0.02 / rate, 40.0 / rate
    for _ in range(SEARCH_STEPS):
        speed = float(np.sqrt(low * high))
        trace = whole.faster(speed)
        bound = bound_of(cell, trace)
        if abs(bound.attained - BOUND_PERCENT) <= TOLERANCE:
            break
        low, high = (speed, high) if bound.attained > BOUND_PERCENT else (low, speed)
    return trace, bound


def _result(service: Service) -> Result:
    return Result(service.attainment_percent, service.saved_percent)


def results_of(cell: Cell, path: Path | None) -> dict[str, Result]:
    """Serve the cell under every policy."""
    trace, bound = loaded(cell, path)
    found = {BOUND: bound, OURS: _result(serve(cell, Ours(), trace))}
    return found | {name: _result(serve(cell, make(), trace)) for name, make in PEERS.items()}


def closed_share(results: dict[str, Result]) -> tuple[float, str]:
    """Return which share of the gap between the best peer and the bound ours closes, and that
    peer.
    """
    peer = max(PEERS, key=lambda name: results[name].attained)
    best, bound = results[peer].attained, results[BOUND].attained
    if bound <= best:
        return (1.0 if results[OURS].attained >= best else 0.0), peer
    return (results[OURS].attained - best) / (bound - best), peer
