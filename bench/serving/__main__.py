"""Measure the model server: against stock vLLM, its batching, and speculative decoding.

Prints a table for each part and a line for each gate; writes CSV and PNG files. Exits with 1 when
a gate has failed. Give the machine nothing else to do meanwhile.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import batching, speculation
from serving.comparison import Size, compare
from serving.report import draw_bars, write_table
from serving.servers import ROOT

_PARTS = ("compare", "batching", "speculation")
_TINY = "llmservice-test/tiny-random-llama"
_SHORT = Size(pairs=3, starts=1, requests=16, concurrency=8, tokens=16)


def main() -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(_PARTS)}")
    parser.add_argument("--short", action="store_true", help="see that it works; decides nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "serving" / "results")
    asked = parser.parse_args()
    parts = asked.parts or list(_PARTS)
    if unknown := sorted(set(parts) - set(_PARTS)):
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(_PARTS)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    python = Path(_printed("python", "server_image/engine_env.py"), "bin", "python")
    model = Path(json.loads(_printed("localkube", "models"))[_TINY])
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        where = (python, model, Path(folder))
        if "compare" in parts:
            comparison = compare(*where, _SHORT if asked.short else Size())
            rows = comparison.rows()
            write_table(asked.out / "comparison.csv", rows)
            draw_bars(
                asked.out / "comparison.png",
                rows,
                ("server", "asked"),
                ("tokens per second",),
                "tokens a second",
            )
            lines = comparison.lines()
        if "batching" in parts:
            found = batching.rows(*where, batch=16, count=32 if asked.short else 128)
            write_table(asked.out / "batching.csv", found)
            draw_bars(
                asked.out / "batching.png",
                found,
                ("mix",),
                ("against waves", "against padded", "bound by steps", "bound L_max/L_mean"),
                "speedup of continuous batching",
            )
        if "speculation" in parts:
            gammas = (3,) if asked.short else (2, 3, 5)
            found = speculation.rows(*where, gammas, tokens=60 if asked.short else 200)
            write_table(asked.out / "speculation.csv", found)
            draw_bars(
                asked.out / "speculation.png",
                found,
                ("draft", "gamma"),
                ("speedup", "linear", "geometric"),
                "speedup",
            )
    print("\n".join(lines))
    return 1 if any(" FAIL " in line for line in lines) else 0


def _printed(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
