"""Measures the operator with 10 to 5,000 services on a real API server without a kubelet.

It prints a table and, at the end, a line for each gate, and writes CSV and PNG files. A missed gate
is reported and is not an error. The cluster of KUBECONFIG must be a fresh one that nothing else
uses, and the machine should run nothing else meanwhile.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_bench import gates
from operator_bench.client import BenchError, Client, Watched, connect
from operator_bench.figures import Cell
from operator_bench.measurement import OPERATOR_NAMESPACE, Measurement
from operator_bench.report import draw, rows
from operator_bench.services import children_of, create
from operator_support.processes import REPOSITORY, kubectl
from serving.report import write_table, write_text
from shared_support.waiting import eventually, eventually_in_loop

RESULTS = REPOSITORY / "bench" / "operator" / "results"
SIZES = (10, 100, 1000, 5000)
COLLECTOR_SECONDS = 120.0
"""Maximum time, in seconds, until the garbage collector discovers a new kind."""


def main() -> int:
    """Measure one size after another, until the time limit."""
    parser = argparse.ArgumentParser(prog="python -m operator_bench", description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="default: %(default)s")
    parser.add_argument(
        "--beside-others",
        type=int,
        default=1000,
        metavar="SIZE",
        help="size measured beside a bare client and what hangs; default: %(default)s",
    )
    parser.add_argument(
        "--minutes", type=float, default=24.0, help="time limit; default: %(default)s"
    )
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    sizes = [int(size) for size in asked.sizes.split(",")]
    asked.out.mkdir(parents=True, exist_ok=True)
    # A signal to the bench must stop the operator, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    started = time.monotonic()
    cells: dict[int, Cell] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(_measure(asked, sizes, cells, Path(folder)))
    except (BenchError, AssertionError, TimeoutError, ExceptionGroup):
        # The figures measured so far are reported. A gate without a figure has failed.
        traceback.print_exc()
    finally:
        if cells:
            write_table(asked.out / "operator.csv", rows(cells.values()))
            draw(asked.out / "operator.png", list(cells.values()))
        lines = gates.lines(cells)
        write_text(asked.out / "gates.txt", lines)
        print(f"{time.monotonic() - started:.0f} s")
        print("\n".join(lines), flush=True)
    return 0


async def _measure(
    asked: argparse.Namespace, sizes: list[int], cells: dict[int, Cell], folder: Path
) -> None:
    """Measure until the time limit, whose end is no error."""
    limit, size = asyncio.timeout(60 * asked.minutes), 0
    try:
        async with limit, connect() as client:
            await _prepare(client)
            for size in sizes:
                cell = cells[size] = Cell(size)
                began = time.monotonic()
                measurement = Measurement(client, cell, folder, asked.idle_seconds)
                await measurement.run(beside_others=size == asked.beside_others)
                print(f"{size} services: {time.monotonic() - began:.0f} s", flush=True)
    except TimeoutError:
        if not limit.expired():
            raise
        print(f"{size} services: cut off by the time limit of {asked.minutes:g} minutes")


async def _prepare(client: Client) -> None:
    """Install the CRD, and wait until the garbage collector knows the kind."""
    kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds" / "llmservice.yaml"))
    eventually(
        lambda: kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    )
    await client.send("POST", "/api/v1/namespaces", {"metadata": {"name": OPERATOR_NAMESPACE}})
    seen = Watched(client, [DEPLOYMENTS])
    async with seen.watching():
        stored = await create(client, 1, (OPERATOR_NAMESPACE, "first"))
        (deployment,) = (each for each in children_of(stored) if each["kind"] == DEPLOYMENTS.kind)
        await client.apply(DEPLOYMENTS, deployment)
        await eventually_in_loop(lambda: seen.count(DEPLOYMENTS) == 1)
        await client.send("DELETE", LLMSERVICES.path(OPERATOR_NAMESPACE, "first"))
        await eventually_in_loop(lambda: not seen.count(DEPLOYMENTS), COLLECTOR_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
