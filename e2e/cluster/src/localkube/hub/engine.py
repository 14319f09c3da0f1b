"""Runs the project's scripts with the engine's torch and transformers, without importing
them here.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import localkube
from localkube.errors import CommandFailed

ENVIRONMENT_MAKER = Path(localkube.__file__).parents[4] / "server_image" / "engine_env.py"
SCRIPTS = Path(__file__).parent / "engine_scripts"
REQUIREMENTS = SCRIPTS / "requirements.txt"

SHOWN_LINES = 20
"""Number of lines from the end of a failed program's output that an error message shows."""


@cache
def environment() -> Path:
    """Return the folder of the engine's environment. If it is missing, it is created, which takes
    minutes and 6 GB of disk space.
    """
    made = subprocess.run(
        [sys.executable, str(ENVIRONMENT_MAKER)], stdout=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        raise CommandFailed(f"{ENVIRONMENT_MAKER} could not make the engine's environment.")
    return Path(made.stdout.strip())


def run_script(name: str, *arguments: str, packages: Path | None = None, stdin: str = "") -> str:
    """Run a script of engine_scripts and return its output. `packages` is its PYTHONPATH."""
    path = [str(packages)] if packages else []
    return _run(
        [str(environment() / "bin" / "python"), str(SCRIPTS / name), *arguments],
        environment={"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"},
        stdin=stdin,
    )


def install_packages(folder: Path, requirements: Path = REQUIREMENTS) -> None:
    """Install locked packages into a folder. By default, these are the packages that the scripts
    need in addition to the engine's packages."""
    python = str(environment() / "bin" / "python")
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    _run([*install, "--python", python, "--target", str(folder), "-r", str(requirements)])


def _run(
    command: Sequence[str], *, environment: dict[str, str] | None = None, stdin: str = ""
) -> str:
    done = subprocess.run(
        command,
        env=os.environ | (environment or {}),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-SHOWN_LINES:])
        raise CommandFailed(f"{' '.join(command)} ended with status {done.returncode}:\n{tail}")
    return done.stdout
