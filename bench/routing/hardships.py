"""Serves a cell under conditions in which a router's knowledge is wrong or of no use."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from routing.cells import Cell, Files, Result, loaded, result_of
from routing.fleet import Policy, Service
from routing.ours import Ours
from routing.peers import LeastRequests, LeastWork
from routing.traces import Trace
from scaling.hardware import H100

CELL = Cell("mooncake", 8, 820)
SERVEGEN_SLOTS = (130, 20, 74)
"""Numbers of three ten-minute slots of the day: the one with the most requests, one at night, and
one in the daytime."""
LOAD = 0.9
"""Load, as a share of the load at which the bound attains 85 %. It is less than 1, so that no
policy is overloaded."""
WHALE_EVERY, WHALE_TOKENS = 400, 100_000


def _without_prefixes(trace: Trace) -> Trace:
    """Give every block another number, so that no prompts share a prefix."""
    return replace(trace, blocks=np.arange(1, len(trace.blocks) + 1))


def _with_whales(trace: Trace) -> Trace:
    prompt = trace.prompt.copy()
    prompt[::WHALE_EVERY] = WHALE_TOKENS
    return replace(trace, prompt=prompt)


@dataclass(frozen=True)
class Hardship:
    """Differences from an ordinary run of a cell."""

    cell: Cell = CELL
    change: Callable[[Trace], Trace] = lambda trace: trace
    ours: Callable[[], Ours] = Ours
    """Function that makes our router, with the input that it gets under this hardship."""
    slow: dict[int, float] = field(default_factory=dict)
    """Mapping from a slow engine to the factor by which its steps take longer."""
    ready_at: float = 0.0
    """Share of the trace's duration after which the first engine begins to serve."""
    is_cached: bool = True

    def serve(self, policy: Policy, trace: Trace) -> Result:
        ready = {0: self.ready_at * float(trace.arrival[-1])} if self.ready_at else {}
        blocks = self.cell.cached_blocks if self.is_cached else 0
        service = Service(trace, H100, self.cell.replicas, blocks, self.slow, ready)
        return result_of(service.run(policy))


HARDSHIPS = {
    "no shared prefix": Hardship(change=_without_prefixes),
    "one replica half as fast": Hardship(slow={0: 2.0}),
    "prefix caching off": Hardship(is_cached=False),
    "byte ratio twice the guess": Hardship(ours=lambda: Ours(bytes_per_token=8.0)),
    "byte ratio half the guess": Hardship(ours=lambda: Ours(bytes_per_token=2.0)),
    "images as base64": Hardship(ours=lambda: Ours(image_every=4)),
    "one whale in 400": Hardship(change=_with_whales),
    "a replica just started": Hardship(ready_at=0.5),
    "reports 5 s apart": Hardship(ours=lambda: Ours(report_seconds=5.0)),
    "reports 4.5 s late": Hardship(ours=lambda: Ours(report_delay=4.5)),
    "reports 5 s late": Hardship(ours=lambda: Ours(report_delay=5.0)),
} | {f"ServeGen slot {slot}": Hardship(Cell(f"servegen-{slot}", 4, 820)) for slot in SERVEGEN_SLOTS}

OTHERS: tuple[Callable[[], Policy], ...] = (LeastRequests, LeastWork)
"""The policies that know no prefixes."""


def results_under(name: str, files: Files) -> list[Result]:
    """Return the result of our router, and those of the other policies, under one hardship."""
    hardship = HARDSHIPS[name]
    trace = hardship.change(loaded(hardship.cell, files)[0].faster(LOAD))
    return [hardship.serve(make(), trace) for make in (hardship.ours, *OTHERS)]
