"""Lists the cells of the benchmark, and serves their requests.

A cell is a trace, a number of replicas, and a size of the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
REQUESTS, SHORT_REQUESTS = 6000, 20_000
"""Maximum number of requests of a cell. The second number is for ServeGen's requests, which are
short."""
BOUND_PERCENT, TOLERANCE = 85.0, 4.0
"""Percentage of the requests that get their first token in time from the bound, at the load of each
cell, and the tolerance of this percentage in points."""
FIRST_UTILIZATION, SPEED_STEP, SEARCH_STEPS = 0.3, 1.5, 24
"""Start of the search for a trace's speed (the utilization if no prompt is cached), first factor
between two speeds, and maximum number of speeds."""
EXACT_SECONDS = 0.1
"""Time in seconds between two reports of a replica if the product's rules have exact knowledge."""
FORESIGHTS = ((16.0, 0.3), (0.0, 0.0), (4.0, 0.3))
"""Weights of each policy with foresight: of the work of a prompt, and of the delay by its answer.
"""

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
def trace_of(name: str, files: Files) -> Trace:
    """Return a trace. Raises ValueError if the file of the trace is not given."""
    if name == "agents":
        return agents(seed=1).first(REQUESTS)
    if name == "agents-2":
        return agents(seed=2).first(REQUESTS)
    if name == "documents":
        return documents(seed=1).first(REQUESTS)
    if name.startswith("servegen-") and files.servegen is not None:
        return servegen(files.servegen, int(name.removeprefix("servegen-")), SHORT_REQUESTS)
    if name == "mooncake" and files.mooncake is not None:
        return mooncake(files.mooncake).first(REQUESTS)
    raise ValueError(f"the trace {name} needs its file")


def serve(cell: Cell, policy: Policy, trace: Trace) -> Service:
    return Service(trace, H100, cell.replicas, cell.cached_blocks).run(policy)


def result_of(service: Service) -> Result:
    ttft = service.ttft
    mean = float(ttft[np.isfinite(ttft)].mean())
    return Result(service.is_in_time, service.saved_percent, mean)


def _exact(cell: Cell, trace: Trace) -> Result:
    """Return the result of the product's rules with exact knowledge."""
    return result_of(serve(cell, Ours(length_noise=0.0, report_seconds=EXACT_SECONDS), trace))


def _foresight(cell: Cell, trace: Trace) -> list[Result]:
    return [result_of(serve(cell, Bound(*weights), trace)) for weights in FORESIGHTS]


@cache
def loaded(cell: Cell, files: Files) -> tuple[Trace, Result]:
    """Return the cell's trace, at the speed at which the bound attains BOUND_PERCENT, and the
    bound's result.

    The bound is the best of the policies with foresight and the product's rules with exact
    knowledge. The search starts at a low speed, because an overloaded fleet takes long to simulate.
    """
    whole = trace_of(cell.trace, files)
    work = float(whole.prompt.sum()) * H100.step.prefill
    speed = FIRST_UTILIZATION * cell.replicas * float(whole.arrival[-1]) / work
    low, step = 0.0, SPEED_STEP
    for _ in range(SEARCH_STEPS):
        trace = whole.faster(speed)
        found = _exact(cell, trace)
        if found.attained <= BOUND_PERCENT + TOLERANCE:
            found = max([found, *_foresight(cell, trace)], key=lambda each: each.attained)
        if abs(found.attained - BOUND_PERCENT) <= TOLERANCE:
            break
        if found.attained > BOUND_PERCENT:
            low = speed
        else:
            # The speed was too great, so the last step was too large.
            speed = low or speed / step**2
            step = float(np.sqrt(step))
        speed *= step
    return trace, found


def results_of(cell: Cell, files: Files) -> dict[str, Result]:
    """Return the result of every policy in the cell."""
    trace, bound = loaded(cell, files)
    found = {BOUND: bound, OURS: result_of(serve(cell, Ours(), trace))}
    return found | {name: result_of(serve(cell, make(), trace)) for name, make in PEERS.items()}
