"""Write two files for each vLLM version: the table of its flags, and the interface on which the
model server depends.

    uv run python server_image/flag_tables.py 0.33.0 [...]

The code of a version comes from its wheel for GPUs, which the GPU image also contains. The code
uses the packages of the engine environment, which suit every version close to the one in that
environment. A version that needs other packages has a file in requirements/versions.

The operator reads every table in its folder, so a new file needs no other edit. `make generate`
then lists the new flags in docs/engine-flags.md. Decide which of them a user may set. The server's
unit tests show whether the model server works with the interface.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_env

HERE = Path(__file__).parent
TABLES = HERE.parent / "operator/src/llmservice_operator/desired/flag_tables"

INTERFACES = HERE / "interfaces"

PLATFORM_CHOICES = {"--mm-processor-device"}
"""Flags whose choices depend on the machine, so the tables do not list their choices."""


@contextmanager
def python_with(version: str) -> Iterator[Path]:
    """Yield an interpreter that imports the vLLM of a version."""
    if version in engine_env.VERSIONS:
        yield engine_env.engine_python(version)
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder, "environment")
        engine_env.lay_over(engine_env.make(), environment, (f"vllm=={version}",))
        yield engine_env.python_of(environment)


def read_flags(python: Path) -> dict[str, dict[str, Any]]:
    """Return the flags of the vLLM that an interpreter imports."""
    (flags,) = ask(python, "engine_parser.py", json.dumps(["flags", [[]]]))
    return dict(flags)


def read_interface(python: Path) -> dict[str, Any]:
    """Return two lists about the vLLM that an interpreter imports: those symbols of vLLM that
    compat.py uses, and the routes.
    """
    return dict(ask(python, "engine_interface.py"))


def ask(python: Path, script: str, question: str = "") -> Any:
    """Run a script of this folder with `question` as its input, and return its JSON output.

    Raises CalledProcessError if the script fails.
    """
    asked = subprocess.run(
        [python, HERE / script], input=question, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(asked.stdout)


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


def interface_path(version: str) -> Path:
    """Return the file of a version's interface."""
    return INTERFACES / f"{version}.json"


def main() -> None:
    """Write the table and the interface of each version named on the command line."""
    for version in sys.argv[1:]:
        with python_with(version) as python:
            flags = read_flags(python)
            interface = read_interface(python)
        table_path(version).write_text(render_table(flags))
        INTERFACES.mkdir(exist_ok=True)
        interface_path(version).write_text(json.dumps(interface, indent=1) + "\n")
        print(f"vLLM {version}: {len(flags)} flags in {table_path(version)}, and its interface")


if __name__ == "__main__":
    main()
