"""Serves a cell under conditions in which a router's knowledge is wrong or of no use."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from routing.cells import Cell, loaded
from routing.fleet import Policy, Service
from routing.ours import Ours
from routing.peers import LeastRequests, LeastWork
from routing.traces import Trace
from scaling.hardware import H100

CELL = Cell("mooncake", 8, 820)
LOAD = 0.9
"""Share of the load at which the bound attains 85 %, so that no policy is overloaded."""
WHALE_EVERY, WHALE_TOKENS = 400, 100_000


def _without_prefixes(trace: Trace) -> Trace:
    """Give every block a number of its own."""
    return replace(trace, blocks=np.arange(1, len(trace.blocks) + 1))


def _with_whales(trace: Trace) -> Trace:
    prompt = trace.prompt.copy()
    prompt[::WHALE_EVERY] = WHALE_TOKENS
    return replace(trace, prompt=prompt)


@dataclass(frozen=True)
class Hardship:
    """What is different from an ordinary run of the cell."""

    change: Callable[[Trace], Trace] = lambda trace: trace
    ours: Callable[[], Ours] = Ours
    """Makes the router, with its input."""
    slow: dict[int, float] = field(default_factory=dict)
    """How many times longer the steps of an engine take."""
    cached_blocks: int = CELL.cached_blocks

    def attained(self, policy: Policy, trace: Trace) -> float:
        """Return the percentage of the requests with a first token in time."""
        service = Service(trace, H100, CELL.replicas, self.cached_blocks, self.slow)
        return service.run(policy).attainment_percent


HARDSHIPS = {
    "no shared prefix": Hardship(_without_prefixes),
    "one replica half as fast": Hardship(slow={0: 2.0}),
    "prefix caching off": Hardship(cached_blocks=0),
    "byte ratio wrong by 2": Hardship(ours=lambda: Ours(bytes_per_token=8.0)),
    "images as base64": Hardship(ours=lambda: Ours(image_every=4)),
    "one whale in 400": Hardship(_with_whales),
    "reports 5 s apart": Hardship(ours=lambda: Ours(report_seconds=5.0)),
}


def losses(path: Path | None) -> dict[str, tuple[float, float]]:
    """Return what ours attains under each hardship, and the best of the two policies that know no
    prefixes, in percent of the requests.
    """
    trace, _ = loaded(CELL, path)
    trace = trace.faster(LOAD)
    found = {}
    for name, hardship in HARDSHIPS.items():
        changed = hardship.change(trace)
        others = [hardship.attained(each, changed) for each in (LeastRequests(), LeastWork())]
        found[name] = hardship.attained(hardship.ours(), changed), max(others)
    return found
