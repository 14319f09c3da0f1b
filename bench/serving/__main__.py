"""Measures the model server: a comparison with stock vLLM, batching, and speculative decoding.

It prints a table for each part and, at the end, a line for each gate, and writes CSV and PNG files.
A missed gate is reported and is not an error. The machine should run nothing else meanwhile.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from localkube.hub.packages import suffix_packages
from serving import batching, comparison, gates, speculation, speculation_on_text
from serving.report import draw_bars, draw_predictions, write_table, write_text
from serving.servers import ROOT

_PARTS = ("compare", "starts", "batching", "speculation", "texts")
_TINY = "llmservice-test/tiny-random-llama"
_TRAINED = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> int:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(_PARTS)}")
    parser.add_argument("--short", action="store_true", help="see that it works; decides nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "serving" / "results")
    asked = parser.parse_args()
    parts = asked.parts or list(_PARTS)
    if unknown := sorted(set(parts) - set(_PARTS)):
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(_PARTS)}")
    started = time.monotonic()
    # A signal to the bench must stop its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    asked.out.mkdir(parents=True, exist_ok=True)
    python = Path(_printed("python", "server_image/engine_env.py"), "bin", "python")
    models = json.loads(_printed("localkube", "models"))
    model = Path(models[_TINY])
    found: dict[str, gates.Ratios] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            where = (python, model, Path(folder))
            if "compare" in parts:
                found |= _compare(*where, asked.short, asked.out)
            if "starts" in parts:
                found |= _starts(*where, asked.short, asked.out)
            if "batching" in parts:
                _batching(*where, asked.short, asked.out)
            if "speculation" in parts:
                _speculation(*where, asked.short, asked.out)
            if "texts" in parts:
                found |= _texts(python, Path(models[_TRAINED]), where[2], asked.short, asked.out)
    finally:
        print(f"\n{time.monotonic() - started:.0f} s")
        print("\n".join(gates.lines(found)), flush=True)
    return 0


def _compare(
    python: Path, model: Path, folder: Path, short: bool, out: Path
) -> dict[str, gates.Ratios]:
    effort = (
        comparison.Effort(pairs=3, overloads=3, requests=16, concurrency=8)
        if short
        else comparison.Effort()
    )
    measured = comparison.compare(python, model, folder, effort)
    rows, ratios = measured.rows(), measured.ratios()
    write_table(out / "comparison.csv", rows)
    write_text(out / "comparison.txt", gates.lines(ratios, only_found=True))
    draw_bars(
        out / "comparison.png",
        [row for row in rows if row["asked"] == "stream"],
        ("server",),
        {
            "tokens/s": ("tokens/s",),
            "API CPU s\nper 1000 tokens": ("API CPU s/1000 tokens",),
            "ms": ("ttft p50 ms", "ttft p99 ms"),
            "ms ": ("itl p50 ms", "itl p99 ms"),
        },
    )
    return ratios


def _starts(
    python: Path, model: Path, folder: Path, short: bool, out: Path
) -> dict[str, gates.Ratios]:
    effort = comparison.Effort(starts=1) if short else comparison.Effort()
    measured = comparison.start(python, model, folder, effort)
    rows, ratios = measured.rows(), measured.ratios()
    write_table(out / "starts.csv", rows)
    write_text(out / "starts.txt", gates.lines(ratios, only_found=True))
    draw_bars(
        out / "starts.png", rows, ("server",), {"seconds to ready": ("fastest s", "median s")}
    )
    return ratios


def _batching(python: Path, model: Path, folder: Path, short: bool, out: Path) -> None:
    effort = batching.Effort(32, 1, 2) if short else batching.Effort()
    compared, modelled = batching.measure(python, model, folder, effort)
    write_table(out / "batching.csv", compared)
    draw_bars(
        out / "batching.png",
        compared,
        ("mix",),
        {
            "tokens/s": ("continuous tokens/s", "waves tokens/s", "padded tokens/s"),
            "speedup of continuous": (
                "against waves",
                "against padded",
                "bound by steps",
                "bound L_max/L_mean",
            ),
        },
    )
    write_table(out / "throughput_model.csv", modelled)
    draw_predictions(
        out / "throughput_model.png",
        modelled,
        "mix",
        "batch",
        "model tokens/s",
        "measured tokens/s",
    )


def _speculation(python: Path, model: Path, folder: Path, short: bool, out: Path) -> None:
    effort = speculation.Effort((3,), 5, 1, 60) if short else speculation.Effort()
    rows = speculation.measure(python, model, folder, effort)
    write_table(out / "speculation.csv", rows)
    print(speculation.verdict(rows))
    draw_bars(
        out / "speculation.png",
        rows,
        ("draft", "gamma", "acceptance"),
        {
            "speedup": ("speedup", "linear", "geometric"),
            "tokens a step": ("tokens/step", "geometric tokens/step"),
            "cost of a step": ("step cost", "gc+1"),
        },
    )


def _texts(
    python: Path, model: Path, folder: Path, short: bool, out: Path
) -> dict[str, gates.Ratios]:
    effort = speculation_on_text.Effort((1,), tokens=8) if short else speculation_on_text.Effort()
    measured = speculation_on_text.measure(python, model, suffix_packages(), folder, effort)
    ratios = measured.ratios()
    write_table(out / "texts.csv", measured.rows)
    write_text(out / "texts.txt", gates.lines(ratios, only_found=True))
    draw_bars(
        out / "texts.png",
        measured.rows,
        ("draft", "text", "concurrent"),
        {"gain": ("gain",), "tokens/s": ("tokens/s",), "acceptance": ("acceptance",)},
    )
    return ratios


def _printed(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
