"""Lists the cells of the benchmark, and serves their requests.

A cell is a trace, a number of replicas, and a size of the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from routing.fleet import Policy, Service
from routing.ours import Ours
from routing.peers import Bound, BoundedHash, LeastRequests, LeastWork, PrefixTree
from routing.traces import Trace, agents, documents, mooncake, servegen
from scaling.engine import Array
from scaling.hardware import H100

REPLICAS = (4, 8, 32)
CACHED_BLOCKS = (820, 4000)
"""Sizes of a replica's cache in blocks: with the accelerator's memory alone, and with main memory
in addition."""
TRACES = ("mooncake", "agents")
REQUESTS, SHORT_REQUESTS = 6000, 10_000
"""Maximum number of requests of a cell. The second number is for ServeGen's requests, which are
short."""
BOUND_PERCENT, TOLERANCE = 85.0, 4.0
"""Percentage of the requests that get their first token in time from the bound, at the load of each
cell, and the tolerance of this percentage in points."""
FIRST_UTILIZATION, RATE_STEP, SEARCH_STEPS = 0.6, 1.5, 24
"""Start of the search for a cell's rate (the utilization if no prompt is cached), first factor
between two rates, and maximum number of rates."""
NEAR_RATES = {
    "mooncake 4x820": 4.6,
    "mooncake 4x4000": 6.0,
    "mooncake 8x820": 9.8,
    "mooncake 8x4000": 12.5,
    "mooncake 32x820": 58.0,
    "mooncake 32x4000": 70.0,
    "agents 4x820": 35.0,
    "agents 4x4000": 41.0,
    "agents 8x820": 70.0,
    "agents 8x4000": 82.0,
    "agents 32x820": 280.0,
    "agents 32x4000": 330.0,
    "agents-2 8x820": 70.0,
}
"""Mapping from a cell to the rate in requests per second at which the search for its rate begins.
It only saves time: the rate that is found does not have to be near."""
NEAR_STEP = 1.1
"""First factor between two rates if the search begins at one of NEAR_RATES."""
EXACT_SECONDS = 0.1
"""Time in seconds between two reports of a replica if the product's rules have exact knowledge."""

OURS, BOUND = "ours", "bound"
PEERS: dict[str, Callable[[], Policy]] = {
    "prefix tree": PrefixTree,
    "bounded hash": BoundedHash,
    "least requests": LeastRequests,
    "least work": LeastWork,
}
POLICIES: dict[str, Callable[[], Policy]] = {
    # The weights are that of the work of a prompt, and that of the delay by its answer.
    "foresight, warm caches": partial(Bound, 16.0, 0.3),
    "foresight, first token": Bound,
    "foresight": partial(Bound, 4.0, 0.3),
    **PEERS,
    OURS: Ours,
    "ours, exact": partial(Ours, length_noise=0.0, report_seconds=EXACT_SECONDS),
}
"""All policies of a cell, the cheapest to simulate first."""


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

    in_time: Array
    """Whether each request got its first token in time."""
    saved: float
    """Percentage of the prompt tokens that caches saved."""
    ttft_mean: float
    """Mean time until the first token in seconds, over the requests that got one."""

    @property
    def attained(self) -> float:
        """Percentage of the requests with a first token in time."""
        return 100 * float(np.mean(self.in_time))


def cells() -> list[Cell]:
    return [Cell(t, n, c) for t in TRACES for n in REPLICAS for c in CACHED_BLOCKS]


VALIDATION = (Cell("documents", 4, 820), Cell("documents", 8, 4000), Cell("agents-2", 8, 820))
"""Cells with traces that were not used to choose the router's constants."""


@dataclass(frozen=True)
class Files:
    """Public traces, which are not a part of this repository. None if a file is not given."""

    mooncake: Path | None = None
    servegen: Path | None = None


@cache
def trace_of(name: str, files: Files) -> Callable[[float], Trace]:
    """Return a function that returns a trace with a number of requests per second.

    A trace of agents gets more sessions. The requests of other traces follow each other faster.
    Raises ValueError if the file of the trace is not given.
    """
    if name == "agents":
        return partial(agents, 1)
    if name == "agents-2":
        return partial(agents, 2)
    if name == "documents":
        return documents(seed=1).first(REQUESTS).at_rate
    if name.startswith("servegen-") and files.servegen is not None:
        slot = int(name.removeprefix("servegen-"))
        return servegen(files.servegen, slot, SHORT_REQUESTS).at_rate
    if name == "mooncake" and files.mooncake is not None:
        return mooncake(files.mooncake).first(REQUESTS).at_rate
    raise ValueError(f"the trace {name} needs its file")


def serve(cell: Cell, policy: Policy, trace: Trace) -> Service:
    return Service(trace, H100, cell.replicas, cell.cached_blocks).run(policy)


def result_of(service: Service) -> Result:
    ttft = service.ttft
    mean = float(ttft[np.isfinite(ttft)].mean())
    return Result(service.is_in_time, service.saved_percent, mean)


def _results(cell: Cell, trace: Trace) -> dict[str, Result]:
    """Return the results of all policies, the cheapest to simulate first.

    The others are left out as soon as one attains more than the search for a rate accepts.
    """
    results: dict[str, Result] = {}
    for name in POLICIES:
        results[name] = _result(cell, name, trace)
        if results[name].attained > BOUND_PERCENT + TOLERANCE:
            break
    return results


def _result(cell: Cell, name: str, trace: Trace) -> Result:
    return result_of(serve(cell, POLICIES[name](), trace))


@cache
def loaded(cell: Cell, files: Files) -> tuple[Trace, dict[str, Result]]:
    """Return the cell's trace, at the rate at which the bound attains BOUND_PERCENT, and the
    results of all policies and of the bound, which is the best of them.

    The search starts at a low rate, because an overloaded fleet takes long to simulate.
    """
    at_rate = trace_of(cell.trace, files)
    low, step = 0.0, NEAR_STEP
    rate = NEAR_RATES.get(cell.name, 0.0)
    if not rate:
        work = float(at_rate(cell.replicas).prompt.mean()) * H100.step.prefill
        rate, step = FIRST_UTILIZATION * cell.replicas / work, RATE_STEP
    for _ in range(SEARCH_STEPS):
        trace = at_rate(rate)
        results = _results(cell, trace)
        attained = max(each.attained for each in results.values())
        if abs(attained - BOUND_PERCENT) <= TOLERANCE:
            break
        if attained > BOUND_PERCENT:
            low = rate
        else:
            # The rate was too great, so the last step was too large.
            rate = low or rate / step**2
            step = float(np.sqrt(step))
        rate *= step
    for name in [each for each in POLICIES if each not in results]:  # no rate was accepted
        results[name] = _result(cell, name, trace)
    return trace, results | {BOUND: max(results.values(), key=lambda each: each.attained)}


def results_of(cell: Cell, files: Files) -> dict[str, Result]:
    """Return the results of all policies and of the bound, by their names."""
    return loaded(cell, files)[1]
