"""Measures a metrics server with many services: `make bench-scrape`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from operator_support.processes import free_port
from scrape.gates import Figures, lines_of_cell, lines_of_group, lines_of_one
from scrape.member import Plan, State
from shared_support.waiting import eventually

WARM_UP_SECONDS: Final = 80
"""Time in seconds until every load is known."""
MEMBERS: Final = 4
READY_SECONDS: Final = 120
"""Longest time in seconds that a process takes to start."""


@dataclass(frozen=True)
class Cell:
    """A cluster, and the number of metrics servers that share it."""

    services: int
    pods: int
    silent: int = 0
    members: int = MEMBERS


@contextmanager
def _process(module: str, argument: str, lines: Path) -> Iterator[subprocess.Popen[bytes]]:
    with lines.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", module, argument], stdout=out)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


def _until(path: Path) -> bytes:
    """Return the content of a file as soon as there is one."""
    return eventually(path.read_bytes, READY_SECONDS, f"something is written to {path}", every=0.1)


def _plans(cell: Cell, stack: ExitStack, asked: Path) -> list[Plan]:
    """Start the replicas of a cell, which write into `asked` when they were asked. Return the plan
    of each metrics server.
    """
    stack.enter_context(_process("scrape.servers", str(asked), asked.with_suffix(".out")))
    port = json.loads(_until(asked))["port"]
    members = tuple(f"127.0.0.1:{free_port()}" for _ in range(cell.members))
    return [Plan(cell.services, cell.pods, cell.silent, port, me, members) for me in members]


def _states(path: Path) -> list[State]:
    # The last line may be unfinished.
    return [State(**json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]


def measure(cell: Cell, seconds: float) -> Figures:
    """Run one metrics server of a cell in real time. The others are simulated."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        asked = folder / "asked"
        plan = _plans(cell, stack, asked)[0]
        argument = json.dumps(asdict(plan))
        if cell.members > 1:
            stack.enter_context(_process("scrape.others", argument, folder / "others"))
        stack.enter_context(_process("scrape.member", argument, folder / "member"))
        _until(folder / "member")
        time.sleep(WARM_UP_SECONDS)
        asked.with_suffix(".reset").touch()
        time.sleep(2)
        before, began = _states(folder / "member")[-1], time.monotonic()
        time.sleep(seconds)
        states = _states(folder / "member")
        passed = time.monotonic() - began
        return Figures.of(plan, before, states, passed, json.loads(asked.read_text())["asked"])


def together(cell: Cell, seconds: float) -> list[list[State]]:
    """Run all metrics servers of a cell, and return their states. The learner of a part of the
    services is stopped in the middle.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        processes = []
        for number, plan in enumerate(_plans(cell, stack, folder / "asked")):
            argument = json.dumps(asdict(plan))
            out = folder / f"member-{number}"
            processes.append(stack.enter_context(_process("scrape.member", argument, out)))
        for number in range(cell.members):
            _until(folder / f"member-{number}")
        time.sleep(WARM_UP_SECONDS + seconds)
        whole = [_states(folder / f"member-{number}") for number in range(cell.members)]
        processes[0].terminate()
        time.sleep(seconds)
        return [whole[0], *(_states(folder / f"member-{it}") for it in range(1, cell.members))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time of a cell")
    parser.add_argument("--parts", default="alone,quarter,silent,together")
    options = parser.parse_args()
    lines = list[str]()
    for part in options.parts.split(","):
        match part:
            case "alone":
                lines += lines_of_one(measure(Cell(1000, 2000, members=1), options.seconds))
            case "quarter":
                figures = measure(Cell(5000, 10_000), options.seconds)
                lines += lines_of_cell("scrape_10000", figures)
            case "silent":
                figures = measure(Cell(5000, 10_000, silent=500), options.seconds)
                lines += lines_of_cell("scrape_10000_silent", figures)
            case "together":
                lines += lines_of_group(together(Cell(500, 1000), 30.0), 500)
            case _:
                parser.error(f"there is no part {part}")
        print(f"{part}: {lines[-1]}", flush=True)
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
