"""Serves a cell under conditions in which a router's knowledge is wrong or of no use."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from routing.cells import Cell, loaded
from routing.fleet import Service
from routing.ours import Ours
from routing.peers import LeastRequests, LeastWork
from routing.traces import Trace
from scaling.hardware import H100

CELL = Cell("mooncake", 8, 820)
LOAD = 0.9
"""Share of the load at which the bound attains 85 %, so that no policy is overloaded."""
WHALE_EVERY, WHALE_TOKENS = 400, 100_000


def _same(trace: Trace) -> Trace:
    return trace


def _without_prefixes(trace: Trace) -> Trace:
    """Give every block a number of its own."""
    return replace(trace, blocks=np.arange(1, len(trace.blocks) + 1))


def _with_whales(trace: Trace) -> Trace:
    prompt = trace.prompt.copy()
    prompt[::WHALE_EVERY] = WHALE_TOKENS
    return replace(trace, prompt=prompt)


HARDSHIPS: dict[str, tuple[Callable[[Trace], Trace], dict[int, float], int, Callable[[], Ours]]] = {
    "no shared prefix": (_without_prefixes, {}, CELL.cached_blocks, Ours),
    "one replica half as fast": (_same, {0: 2.0}, CELL.cached_blocks, Ours),
    "prefix caching off": (_same, {}, 0, Ours),
    "byte ratio wrong by 2": (_same, {}, CELL.cached_blocks, lambda: Ours(bytes_per_token=8.0)),
    "images as base64": (_same, {}, CELL.cached_blocks, lambda: Ours(image_every=4)),
    "one whale in 400": (_with_whales, {}, CELL.cached_blocks, Ours),
    "reports 5 s apart": (_same, {}, CELL.cached_blocks, lambda: Ours(report_seconds=5.0)),
}
"""By name: the change of the trace, slow engines, the size of the cache, and the router's input."""


def losses(path: Path | None) -> dict[str, tuple[float, float]]:
    """Return what ours attains under each hardship, and the best of the two policies that know no
    prefixes, in percent of the requests.
    """
    trace, _ = loaded(CELL, path)
    trace = trace.faster(LOAD)
    found = {}
    for name, (change, slow, blocks, ours) in HARDSHIPS.items():
        changed = change(trace)

        def attained(policy: Ours | LeastRequests | LeastWork) -> float:
            service = Service(changed, H100, CELL.replicas, blocks, slow)  # noqa: B023
            return service.run(policy).attainment_percent

        found[name] = attained(ours()), max(attained(LeastRequests()), attained(LeastWork()))
    return found
