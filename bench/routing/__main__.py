"""Runs the routing benchmark: `make bench-routing MOONCAKE=FILE`."""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from routing.cells import BOUND, OURS, PEERS, Result, cells, closed_share, results_of
from routing.hardships import losses

LEAST_SHARE, MOST_POINTS = 0.75, 1.0
NOT_MEASURED = (
    "real_prefill",
    "prediction",
    "cpu_2k",
    "cpu_400k",
    "picks_per_second",
    "idle_router",
    "held_memory",
    "failover",
)
"""Gates that need the router's pod, which does not exist yet."""


def main() -> int:
    """Run all cells. A missed gate is reported and is not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mooncake", type=Path, help="Mooncake conversation trace (JSON lines)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    arguments = parser.parse_args()
    path, began = arguments.mooncake, time.monotonic()
    wanted = [cell for cell in cells() if path or cell.trace != "mooncake"]
    shares = []
    names = (BOUND, OURS, *PEERS)
    print(f"{'percent with TTFT <= 2 s':26}" + "".join(f"{name:>16}" for name in names))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        found = pool.map(partial(results_of, path=path), wanted)
        for cell, results in zip(wanted, found, strict=True):
            share, peer = closed_share(results)
            shares.append(share)
            print(_row(cell.name, results, names) + f"   {share:.2f} of the gap to {peer}")
            sys.stdout.flush()
        worst = []
        if path:
            for name, (ours, other) in pool.submit(losses, path).result().items():
                worst.append(other - ours)
                print(f"{name:26}{'':16}{ours:16.1f}   best without prefixes {other:.1f}")
    print(f"\n{time.monotonic() - began:.0f} s")
    complete = len(wanted) == len(cells())
    least = min(shares) if complete else None
    print(_gate("sim_ttft", least, f">={LEAST_SHARE}", least is not None and least >= LEAST_SHARE))
    most = max(worst) if worst else None
    print(_gate("never_worse", most, f"<={MOST_POINTS}", most is not None and most <= MOST_POINTS))
    for name in NOT_MEASURED:
        print(f"GATE {name} missing - FAIL")
    return 0


def _row(name: str, results: dict[str, Result], names: tuple[str, ...]) -> str:
    return f"{name:26}" + "".join(
        f"{results[each].attained:10.1f} ({results[each].saved:2.0f})" for each in names
    )


def _gate(name: str, value: float | None, limit: str, is_met: bool) -> str:
    shown = "missing" if value is None else f"{value:.2f}"
    return f"GATE {name} {shown} {limit} {'PASS' if is_met else 'FAIL'}"


if __name__ == "__main__":
    sys.exit(main())
