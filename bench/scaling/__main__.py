"""Runs the scaling bench: `make bench-scaling`, `make bench-scaling-full`,
`make bench-scaling-unseen`, `make bench-scaling-zero`.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from scaling.choices import Routing
from scaling.cliff import CASES, search
from scaling.forecast import forecast_gates
from scaling.gates import (
    CELLS,
    Figures,
    attainment,
    best_peer,
    dominated_cells,
    gates,
    gpu_hours,
    mean,
)
from scaling.promise import mean_rate, promised_rate, seen_mix
from scaling.runs import (
    NEAREST,
    ORACLE,
    OURS,
    SEEDS,
    WORKLOADS,
    Result,
    Run,
    gate_routing,
    gate_runs,
    matrix_runs,
    other_runs,
    peer_names,
    result_of,
    shipped_runs,
    unseen_runs,
)
from scaling.truth import truth_of
from scaling.unseen import UNSEEN
from scaling.unseen_gates import cliff_gates, unseen_gates
from scaling.workloads import GATE_WORKLOADS, Workload
from scaling.zero import zero_gates

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the requested parts. A missed gate is reported and is not an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every cell; writes CSV and plots")
    parser.add_argument("--unseen", action="store_true", help="the unseen workloads, and cliffs")
    parser.add_argument("--zero", action="store_true", help="a service at zero, day and night")
    parser.add_argument("--matrix", action="store_true", help="ours and near peers, every routing")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--only", default="", help="workloads, by comma")
    parser.add_argument("--no-peers", action="store_true", help="ours and the oracle alone")
    arguments = parser.parse_args()

    if arguments.zero:
        for gate in zero_gates(arguments.jobs):
            print(gate.line, flush=True)
        return 0
    names = () if arguments.no_peers else peer_names()
    wanted = set(arguments.only.split(",")) if arguments.only else set(WORKLOADS)
    if arguments.matrix:
        present = [name for name in WORKLOADS if name in wanted and WORKLOADS[name].is_present()]
        policies = (OURS, ORACLE, *(NEAREST if names else ()))
        print_matrix(run_all(list(matrix_runs(present, policies)), arguments.jobs))
        return 0
    if arguments.unseen:
        return run_unseen(names, wanted, arguments.jobs)
    started = time.monotonic()
    commit = _commit()
    runs = list(dict.fromkeys([*gate_runs(names), *(shipped_runs() if names else ())]))
    results = run_all([run for run in runs if run.workload in wanted], arguments.jobs)
    matrix: list[Result] = []
    if arguments.full:
        print_gates(results)
        done = {result.run for result in results}
        gated = [workload.name for workload in GATE_WORKLOADS]
        cells = list(matrix_runs(gated, (OURS, ORACLE, *names)))
        more = [run for run in (*other_runs(names), *cells) if run.workload in wanted]
        results += run_all([run for run in more if run not in done], arguments.jobs)
        matrix = [result for result in results if result.run in set(cells)]
        # matplotlib is loaded only to draw.
        from scaling.plots import draw_all

        write_csv(results, commit)
        draw_all(RESULTS)
    print_tables(results)
    print_shipped(results)
    print_matrix(matrix)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\n{len(results)} runs in {time.monotonic() - started:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time\n"
    )
    print_gates(results)
    return 0


def run_unseen(names: tuple[str, ...], wanted: set[str], jobs: int) -> int:
    """Search for cliffs, and run the workloads for which nothing was tuned."""
    for gate in cliff_gates(search(range(CASES), jobs)):
        print(gate.line, flush=True)
    for workload in UNSEEN:
        if not workload.is_present():
            print(f"{workload.name}: left out, because {workload.needs} does not exist")
    results = run_all([run for run in unseen_runs(names, SEEDS) if run.workload in wanted], jobs)
    print_runs(results)
    for gate in chain(unseen_gates(results), forecast_gates(jobs)):
        print(gate.line, flush=True)
    return 0


def _commit() -> str:
    """Return the commit under test, or "unknown" in a source archive, which has no commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def print_gates(results: list[Result]) -> None:
    for gate in gates(results):
        print(gate.line, flush=True)


def _sustained(workload: Workload) -> str:
    hardware, truth = workload.hardware, truth_of(workload).capacity
    mix = seen_mix(workload, 0.5 * truth)
    promised, mean = promised_rate(hardware, mix, workload.slo), mean_rate(hardware, mix)
    return (
        f"{workload.name}: one replica sustains {truth:.2f} requests/s; "
        f"our formula says {promised:.2f} ({100 * (promised / truth - 1):+.0f} %), "
        f"one of the mean {mean:.2f} ({100 * (mean / truth - 1):+.0f} %)"
    )


def run_all(runs: list[Run], jobs: int) -> list[Result]:
    """Run all runs on several processes, and print progress after every tenth."""
    # Compiled code and measured capacities are cached here, before the worker processes start, so
    # that none of them repeats the work.
    for name in sorted({run.workload for run in runs}):
        print(_sustained(WORKLOADS[name]), flush=True)
    results = []
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(result_of, run) for run in runs]
        for done, future in enumerate(as_completed(futures), 1):
            results.append(future.result())
            if done % 10 == 0 or done == len(futures):
                print(f"{done}/{len(futures)} runs", file=sys.stderr, flush=True)
    order = {run: i for i, run in enumerate(runs)}
    return sorted(results, key=lambda result: order[result.run])


def print_tables(results: list[Result]) -> None:
    """Print every run with the first seed, and then the totals of each policy over the cells."""
    print_runs(results)
    figures = Figures(results)
    print(f"\nsum of {len(CELLS)} cells, seed {SEEDS[0]}")
    for policy in (OURS, ORACLE, *figures.peers()):
        hours = figures.over_cells(policy, SEEDS[0], gpu_hours)
        share = figures.over_cells(policy, SEEDS[0], attainment)
        print(
            f"{policy:<26}{sum(hours):>8.1f} GPU-h"
            f"{mean(share):>8.2f} % mean{min(share):>8.2f} % min"
        )
    print(f"best peer: {best_peer(figures)}")
    for (workload, cold_start), peer in dominated_cells(figures):
        print(f"dominated: {workload} at {cold_start:.0f} s by {peer}")


def print_shipped(results: list[Result]) -> None:
    """Print the totals of ours and of the nearest peers with the routing that each ships with."""
    print(f"\nsum of {len(CELLS)} cells, seed {SEEDS[0]}, with the routing that each ships with")
    runs = list(shipped_runs())
    of_run = {result.run: result for result in results}
    for policy, routing in dict.fromkeys((run.policy, run.routing) for run in runs):
        wanted = [run for run in runs if (run.policy, run.routing) == (policy, routing)]
        found = [of_run[run] for run in wanted if run in of_run]
        if len(found) == len(wanted):
            share = [result.attainment_percent for result in found]
            print(
                f"{policy:<26}{routing:<22}{sum(map(gpu_hours, found)):>8.1f} GPU-h"
                f"{sum(share) / len(share):>8.2f} % mean{min(share):>8.2f} % min"
            )


def print_matrix(results: list[Result]) -> None:
    """Print the GPU-hours and the SLO attainment of every policy with every routing."""
    cells = {(r.run.workload, r.run.policy, r.run.routing): r for r in results}
    for workload in dict.fromkeys(result.run.workload for result in results):
        print(f"\n{workload}: GPU-hours and SLO attainment in percent, by routing")
        print(f"{'':<26}" + "".join(f"{routing:>21}" for routing in Routing))
        for policy in dict.fromkeys(r.run.policy for r in results if r.run.workload == workload):
            found = [cells.get((workload, policy, routing)) for routing in Routing]
            shown = ["" if r is None else f"{r.gpu_hours:.2f} {attainment(r):6.2f}" for r in found]
            print(f"{policy:<26}" + "".join(f"{each:>21}" for each in shown))


def print_runs(results: list[Result]) -> None:
    """Print every run with the first seed."""
    print(
        f"\n{'workload':<16}{'cold':>5} {'policy':<26}{'GPU-h':>8}{'SLO %':>8}{'events':>8}"
        f"{'peak':>6}{'use %':>7}{'recovery':>10}{'cut':>5}"
    )
    for result in results:
        run = result.run
        if run.seed != SEEDS[0]:
            continue
        extra = f" x{run.prior:g}" if run.prior != 1 else ""
        routing = "" if run.routing is gate_routing(run.policy) else f" {run.routing}"
        name = f"{run.policy}{extra}{routing} {run.event}".rstrip()
        print(
            f"{run.workload:<16}{run.cold_start:>5.0f} {name:<26}{result.gpu_hours:>8.2f}"
            f"{result.attainment_percent:>8.2f}{result.events:>8}{result.peak:>6}"
            f"{result.utilization_percent:>7.1f}{result.recovery_seconds:>10.0f}{result.cut:>5}"
        )


def write_csv(results: Iterable[Result], commit: str) -> None:
    """Write every run into one table, with the tested commit."""
    RESULTS.mkdir(exist_ok=True)
    rows = [
        {**asdict(result.run), **{k: v for k, v in asdict(result).items() if k != "run"}}
        for result in results
    ]
    with (RESULTS / "runs.csv").open("w", newline="") as file:
        file.write(f"# commit {commit}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
