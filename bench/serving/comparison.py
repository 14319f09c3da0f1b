"""Ours against stock vLLM: the gates, with stock against stock beside them."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from serving import gates, servers
from serving.gates import Gate, Interval, paired_ratio
from serving.load import Load, quantile, run
from serving.servers import Server

_NAMES = ("ours", "stock", "stock again")


@dataclass(frozen=True)
class Size:
    """How much one run does."""

    pairs: int = 20
    starts: int = 5
    requests: int = 64
    concurrency: int = 32
    tokens: int = 32


@dataclass
class Comparison:
    """Every run of every server, by whether it streamed."""

    plain: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    streamed: dict[str, list[Load]] = field(default_factory=lambda: {name: [] for name in _NAMES})
    starts: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "stock": []})

    def lines(self) -> list[str]:
        """Return one line per gate."""
        measured: list[tuple[Gate, dict[str, list[Load]], Callable[[Load], float]]] = [
            (gates.THROUGHPUT_PLAIN, self.plain, lambda load: load.throughput),
            (gates.THROUGHPUT_STREAM, self.streamed, lambda load: load.throughput),
            (gates.TTFT_P99, self.streamed, lambda load: quantile(load.ttft, 0.99)),
            (
                gates.API_CPU_PER_TOKEN,
                self.streamed,
                lambda load: load.api_cpu_per_1000_tokens,
            ),
        ]
        lines = [
            gate.line(_ratio(loads, "ours", value), _ratio(loads, "stock again", value))
            for gate, loads, value in measured
        ]
        if self.starts["ours"]:
            ratio = paired_ratio(self.starts["ours"], self.starts["stock"])
            lines.append(gates.START_TO_READY.line(ratio, None))
        return lines

    def rows(self) -> list[dict[str, float | str]]:
        """Return one row for every server and way of asking: means over all of its runs."""
        return [
            {
                "server": name,
                "asked": asked,
                "tokens per second": _mean(load.throughput for load in loads),
                "ttft p50 ms": 1000 * quantile([t for x in loads for t in x.ttft] or [0], 0.5),
                "ttft p99 ms": 1000 * quantile([t for x in loads for t in x.ttft] or [0], 0.99),
                "itl p50 ms": 1000 * quantile([t for x in loads for t in x.itl] or [0], 0.5),
                "itl p99 ms": 1000 * quantile([t for x in loads for t in x.itl] or [0], 0.99),
                "API CPU s per 1000 tokens": _mean(x.api_cpu_per_1000_tokens for x in loads),
            }
            for asked, runs in (("plain", self.plain), ("stream", self.streamed))
            for name, loads in runs.items()
        ]


def compare(python: Path, model: Path, folder: Path, size: Size) -> Comparison:
    """Run all three servers side by side and ask them in turn, in a new order every time."""
    comparison = Comparison()
    chance = random.Random(0)
    with ExitStack() as stack:
        running: list[Server] = [
            stack.enter_context(servers.ours(python, model, folder)),
            stack.enter_context(servers.stock(python, model, folder)),
            stack.enter_context(servers.stock(python, model, folder, name="stock again")),
        ]
        lengths = [size.tokens] * size.requests
        for server in running:
            for stream in (False, True):
                run(server, lengths, concurrency=size.concurrency, stream=stream)
        for number in range(size.pairs):
            for stream in (False, True):
                runs = comparison.streamed if stream else comparison.plain
                for server in chance.sample(running, k=len(running)):
                    load = run(server, lengths, concurrency=size.concurrency, stream=stream)
                    runs[server.name].append(load)
            print(f"compare: round {number + 1} of {size.pairs}", flush=True)
    for number in range(size.starts):
        # A start of stock is the one that its users have: as it is shipped.
        for start in chance.sample(("ours", "stock"), k=2):
            started = (
                servers.ours(python, model, folder)
                if start == "ours"
                else servers.stock(python, model, folder, as_shipped=True)
            )
            with started as server:
                comparison.starts[start].append(server.ready_seconds)
        print(f"start: round {number + 1} of {size.starts}", flush=True)
    return comparison


def _ratio(loads: dict[str, list[Load]], name: str, value: Callable[[Load], float]) -> Interval:
    return paired_ratio([value(x) for x in loads[name]], [value(x) for x in loads["stock"]])


def _mean(values: object) -> float:
    numbers = list(values)  # type: ignore[call-overload]
    return float(sum(numbers) / len(numbers))
