"""Compares our server with stock vLLM for the gates, and stock with stock as the control."""

import itertools
import random
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from serving import servers
from serving.gates import Interval, Ratios, paired_ratio
from serving.load import Load, quantile, run, run_chats
from serving.report import Row
from serving.servers import Server

_NAMES = ("ours", "stock", "stock again")
_STARTS = ("ours", "stock, eager", "stock")
_OVERLOAD = 1.5
"""Requested rate as a multiple of the rate that stock vLLM sustains."""


@dataclass(frozen=True)
class Effort:
    """Number of requests and rounds of the comparison."""

    pairs: int = 42
    """Number of rounds with plain and with streamed requests. It is a multiple of six, so that each
    of the six orders of three servers occurs equally often."""
    overloads: int = 18
    """Number of rounds with more chats than stock vLLM sustains. It is a multiple of six, too."""
    starts: int = 5
    requests: int = 100
    concurrency: int = 32
    tokens: int = 32


@dataclass
class Comparison:
    """Every run of every server, by kind of request: plain, streamed, or chats under overload."""

    plain: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    streamed: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    overloaded: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in _NAMES})

    def ratios(self) -> dict[str, Ratios]:
        """Return the measured ratios for the gates of a running server."""
        measured: list[tuple[str, dict[str, list[Load]], Callable[[Load], float]]] = [
            ("throughput_plain", self.plain, lambda load: load.throughput),
            ("throughput_stream", self.streamed, lambda load: load.throughput),
            ("throughput_overload", self.overloaded, lambda load: load.throughput),
            ("ttft_p99", self.streamed, lambda load: quantile(load.ttft, 0.99)),
            ("api_cpu_per_token", self.streamed, lambda load: load.api_cpu_per_1000_tokens),
        ]
        return {
            name: Ratios(_ratio(loads, "ours", value), _ratio(loads, "stock again", value))
            for name, loads, value in measured
        }

    def rows(self) -> list[Row]:
        """Return one row for every server and kind of request, over all of its runs."""
        rows: list[Row] = []
        kinds = ("plain", self.plain), ("stream", self.streamed), ("overload", self.overloaded)
        for asked, runs in kinds:
            for name, loads in runs.items():
                row: Row = {
                    "server": name,
                    "asked": asked,
                    "tokens/s": statistics.median(load.throughput for load in loads),
                    "API CPU s/1000 tokens": statistics.median(
                        load.api_cpu_per_1000_tokens for load in loads
                    ),
                }
                for kind in ("latency", "ttft", "itl"):
                    seconds = [each for load in loads for each in getattr(load, kind)]
                    for share in (0.5, 0.99):
                        title = f"{kind} p{100 * share:.0f} ms"
                        row[title] = 1000 * quantile(seconds, share) if seconds else ""
                rows.append(row)
        return rows


@dataclass
class Starts:
    """Times in seconds from the start of a process to a ready server, for each way of starting it.

    The ways are our server, stock vLLM with eager execution, and stock vLLM as shipped.
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _STARTS})

    def ratios(self) -> dict[str, Ratios]:
        """Return the measured ratios for the gate of the start."""
        # Stock vLLM as shipped compiles the model at its start, which saves time later. Its times
        # are shown, but do not decide the gate.
        ratio = paired_ratio(self.seconds["ours"], self.seconds["stock, eager"])
        return {"start_to_ready": Ratios(ratio)}

    def rows(self) -> list[Row]:
        """Return one row for every way of starting that was measured."""
        return [
            {
                "server": name,
                "starts": len(seconds),
                "median s": statistics.median(seconds),
                "fastest s": min(seconds),
                "slowest s": max(seconds),
            }
            for name, seconds in self.seconds.items()
            if seconds
        ]


def compare(python: Path, model: Path, folder: Path, effort: Effort) -> Comparison:
    """Run all three servers at the same time, and send requests to one server after another."""
    comparison = Comparison()
    with ExitStack() as stack:
        running: list[Server] = [
            stack.enter_context(servers.ours(python, model, folder)),
            stack.enter_context(servers.stock(python, model, folder)),
            stack.enter_context(servers.stock(python, model, folder, name="stock again")),
        ]
        lengths = [effort.tokens] * effort.requests

        def ask(server: Server, stream: bool) -> Load:
            return run(server, lengths, concurrency=effort.concurrency, stream=stream)

        for server in running:
            for stream in (False, True):
                ask(server, stream)
        for number, order in enumerate(_orders(running, effort.pairs), 1):
            for stream in (False, True):
                runs = comparison.streamed if stream else comparison.plain
                for server in order:
                    runs[server.name].append(ask(server, stream))
            print(f"compare: round {number} of {effort.pairs}", flush=True)
        _overload(running, lengths, effort, comparison)
    return comparison


def _overload(
    running: list[Server], lengths: list[int], effort: Effort, comparison: Comparison
) -> None:
    """Send chats to each server at _OVERLOAD times the rate that stock vLLM sustains."""
    stock = next(server for server in running if server.name == "stock")
    for server in running:
        run_chats(server, lengths, concurrency=effort.concurrency)
    sustained = statistics.median(
        len(lengths) / run_chats(stock, lengths, concurrency=effort.concurrency).seconds
        for _ in range(3)
    )
    for number, order in enumerate(_orders(running, effort.overloads), 1):
        for server in order:
            # An overload run has twice as many requests as the other runs, so that a queue can
            # grow.
            load = run_chats(server, 2 * lengths, rate=_OVERLOAD * sustained)
            comparison.overloaded[server.name].append(load)
        print(f"compare: round {number} of {effort.overloads} under overload", flush=True)


def start(python: Path, model: Path, folder: Path, effort: Effort) -> Starts:
    """Start one server at a time, in a random order in each round.

    Stock vLLM as shipped is started only in the first round.
    """
    starts = Starts()
    for number in range(effort.starts):
        for name in random.Random(number).sample(_STARTS, k=len(_STARTS)):
            if name == "stock" and number:
                continue
            with _started(name, python, model, folder) as server:
                starts.seconds[name].append(server.ready_seconds)
        print(f"start: round {number + 1} of {effort.starts}", flush=True)
    return starts


def _orders(running: list[Server], rounds: int) -> list[tuple[Server, ...]]:
    """Return the order of the servers in each round. Each order occurs about equally often."""
    every = list(itertools.permutations(running))
    orders = list(itertools.islice(itertools.cycle(every), rounds))
    random.Random(0).shuffle(orders)
    return orders


def _started(name: str, python: Path, model: Path, folder: Path) -> servers.Running:
    if name == "ours":
        return servers.ours(python, model, folder)
    flags = ["--enforce-eager"] if name == "stock, eager" else []
    return servers.stock(python, model, folder, flags, as_shipped=True)


def _ratio(
    loads: dict[str, list[Load]], name: str, value: Callable[[Load], float]
) -> Interval | None:
    return paired_ratio([value(x) for x in loads[name]], [value(x) for x in loads["stock"]])
