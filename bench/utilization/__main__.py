"""Tests whether the effective GPU utilization equals the true load of a real engine.

It prints a table, draws a plot, and ends with the line of the gate. The machine should run nothing
else meanwhile, because the truth is measured by a clock.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from llmservice_operator.scaling.conditions import EngineLimits
from serving.report import write_table
from serving.servers import ROOT, Server, ours
from utilization.experiment import SHARES, Experiment, Reading, Size, prior_of
from utilization.gate import line, own_line
from utilization.plot import draw
from utilization.traffic import read_snapshot

REPOSITORY = "llmservice-test/tiny-random-llama"


@dataclass(frozen=True)
class Model:
    """Llama model with random weights. Only the shape affects the time of a step."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int = 20480
    """Vocabulary size. It is small, so that the ratio of the output layer to the other layers is
    that of a model with billions of parameters."""
    kv_heads: int = 2
    head: int = 32

    @property
    def flags(self) -> list[str]:
        shape = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary,
        }
        return [f"--hf-overrides={json.dumps(shape)}", "--load-format=dummy"]

    @property
    def parameters(self) -> float:
        layer = self.hidden * (3 * self.intermediate + 3 * self.hidden)
        return self.layers * layer + self.hidden * self.vocabulary

    @property
    def kv_bytes_per_token(self) -> float:
        return self.layers * 2 * self.kv_heads * self.head * 4


MODELS = {"12 x 128": Model(12, 128, 256), "8 x 256": Model(8, 256, 1024)}
"""Models by number of layers x hidden size. Each is large enough for the engine to be the
bottleneck, and small enough to serve many requests per minute."""

FLAGS = ("--max-num-seqs=32", "--max-num-batched-tokens=512")


def main() -> int:
    """Measure every model with every mix."""
    parser = argparse.ArgumentParser(prog="python -m utilization", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), help="only this one")
    parser.add_argument("--short", action="store_true", help="see that it works; decides nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "utilization" / "results")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    python = Path(_printed("python", "server_image/engine_env.py"), "bin", "python")
    folder = Path(json.loads(_printed("localkube", "models"))[REPOSITORY])
    size = Size(3.0, 3.0, 3.0, 3.0, 3.0) if asked.short else Size()
    found: list[Reading] = []
    for name in [asked.model] if asked.model else MODELS:
        flags = [*FLAGS, *MODELS[name].flags]
        with (
            tempfile.TemporaryDirectory() as temporary,
            ours(python, folder, Path(temporary), flags) as server,
        ):
            found += _measure(server, name, size)
    write_table(asked.out / "utilization.csv", [reading.row() for reading in found])
    draw(asked.out / "utilization.png", found)
    print(own_line(found))
    print(line(found))
    return 0


def _measure(server: Server, name: str, size: Size) -> list[Reading]:
    shape, started = MODELS[name], time.monotonic()
    prior = prior_of(shape.parameters, shape.kv_bytes_per_token)
    experiment = Experiment(server, asyncio.run(_limits(server)), prior, size)
    experiment.begin()
    slo = experiment.slo
    print(
        f"{name}: SLO: TTFT {1000 * (slo.ttft_seconds or 0):.0f} ms, "
        f"mean ITL {1000 * (slo.itl_seconds or 0):.1f} ms for {100 * slo.objective:.0f} %",
        flush=True,
    )
    for number in range(len(SHARES)):
        experiment.round(number)
        shown = ", ".join(f"{1e6 * each:.3g}" for each in experiment.model.coefficients)
        truths = [(each.mix.name, experiment.truth(each)) for each in experiment.tested]
        print(
            f"{name}, round {number + 1} of {len(SHARES)} ({time.monotonic() - started:.0f} s): "
            f"step model in µs: {shown} (fixed, prefill, sequence, kv); the SLO holds up to "
            + ", ".join(
                f"{it.capacity:.1f} [{it.low:.1f}, {it.high:.1f}] requests/s {mix}"
                for mix, it in truths
            ),
            flush=True,
        )
    return list(experiment.readings(name))


async def _limits(server: Server) -> EngineLimits:
    async with aiohttp.ClientSession() as session:
        now = await read_snapshot(session, server)
    return EngineLimits(now.max_sequences, now.kv_capacity_tokens, now.max_step_tokens)


def _printed(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
