"""Tests that the programs behind the make targets start with the modules that they import."""

import re
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]

PROGRAM: Final = re.compile(r"((?:PYTHONPATH=\S+ )?)\S*uv run --frozen (python (?:-m )?\S+)")
"""A command of the Makefile that runs a Python program of the repository."""


def programs() -> dict[str, str]:
    """Return a mapping from make targets to the commands of their Python programs, without
    arguments. Each command occurs once.
    """
    makefile = (ROOT / "Makefile").read_text()
    found: dict[str, str] = {}
    for target in re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE):
        for name in target.split():
            shown = subprocess.run(
                ["make", "--dry-run", name], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout
            for path, program in PROGRAM.findall(shown):
                # The programs of server_image install vLLM before they read their arguments.
                if "server_image/" not in program and f"{path}{program}" not in found.values():
                    found[name] = f"{path}{program}"
    return found


PROGRAMS: Final = programs()


def test_the_makefile_has_the_programs_of_the_readme() -> None:
    assert {"demo", "test", "bench-scaling"} <= set(PROGRAMS)


@pytest.mark.parametrize("target", PROGRAMS)
def test_the_program_of_a_make_target_starts_with_what_it_imports(target: str) -> None:
    done = subprocess.run(
        f"{PROGRAMS[target]} --help",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
