"""Runs the routing benchmark: `make bench-routing MOONCAKE=FILE SERVEGEN=FILE`."""

import argparse
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from routing.cells import BOUND, OURS, PEERS, VALIDATION, Cell, Files, Result, cells, results_of
from routing.gates import MISSING, NEVER_WORSE, SIM_TTFT, closed_share, interval_of, lost_points
from routing.hardships import HARDSHIPS, OTHERS, results_under

NOT_MEASURED = ("real_prefill", "prediction")
"""Gates that no part of this benchmark measures."""
NAMES = (BOUND, OURS, *PEERS)
OTHER_NAMES = tuple(each.__name__ for each in OTHERS)


def main() -> int:
    """Run all cells. A missed gate is reported and is not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mooncake", type=Path, help="Mooncake conversation trace (JSON lines)")
    parser.add_argument("--servegen", type=Path, help="clients of ServeGen (JSON)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    arguments = parser.parse_args()
    files, began = Files(arguments.mooncake, arguments.servegen), time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        lines = [_sim_ttft(pool, files), _never_worse(pool, files)]
    print(f"\n{time.monotonic() - began:.0f} s", *lines, sep="\n")
    for name in NOT_MEASURED:
        print(f"GATE {name} missing - FAIL")
    return 0


def _sim_ttft(pool: ProcessPoolExecutor, files: Files) -> str:
    """Print the figures of the cells. Return the line of the gate sim_ttft."""
    print("percent with TTFT <= 2 s, percent of the prompt tokens saved, mean TTFT in seconds")
    print(_line("", (f"{name:>19}" for name in NAMES)))
    wanted = [cell for cell in cells() if _has_file(cell, files)]
    shares = {cell.name: MISSING for cell in cells()}
    served = [*wanted, *VALIDATION]
    for cell, results in zip(
        served, pool.map(partial(results_of, files=files), served), strict=True
    ):
        share = interval_of([results[name].in_time for name in (OURS, BOUND, *PEERS)], closed_share)
        if cell in wanted:
            shares[cell.name] = share
        print(_line(cell.name, (_shown(results[name]) for name in NAMES), f"closes {share}"))
    return SIM_TTFT.line(shares)


def _never_worse(pool: ProcessPoolExecutor, files: Files) -> str:
    """Print the figures under each hardship. Return the line of the gate never_worse."""
    print("\n" + _line("", (f"{name:>19}" for name in (OURS, *OTHER_NAMES))))
    names = [name for name, each in HARDSHIPS.items() if _has_file(each.cell, files)]
    losses = dict.fromkeys(HARDSHIPS, MISSING)
    for name, results in zip(
        names, pool.map(partial(results_under, files=files), names), strict=True
    ):
        losses[name] = interval_of([each.in_time for each in results], lost_points)
        print(_line(name, map(_shown, results), f"loses {losses[name]} points"))
    return NEVER_WORSE.line(losses)


def _has_file(cell: Cell, files: Files) -> bool:
    needed = {"mooncake": files.mooncake, "servegen": files.servegen}
    kind = cell.trace.partition("-")[0]
    return kind not in needed or needed[kind] is not None


def _line(name: str, columns: Iterable[str], end: str = "") -> str:
    return f"{name:27}{''.join(columns)}   {end}"


def _shown(result: Result) -> str:
    return f"{result.attained:9.1f} {result.saved:3.0f} {result.ttft_mean:5.2f}"


if __name__ == "__main__":
    sys.exit(main())
