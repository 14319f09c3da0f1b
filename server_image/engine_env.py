"""Create the Python environment that runs the real engine on a CPU, once, and print its path.

The environment contains exactly the packages that requirements/cpu.txt locks (about 6 GB). It is a
folder in the cache folder, and its name is the hash of its inputs. `llmservice_server` is not
installed there: callers put server_image/src on PYTHONPATH, so that a code change needs no new
environment.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements" / "cpu.txt"
PYTHON_VERSION = "3.11"
"""Python version for which requirements/cpu.txt is locked; the CPU image has the same version."""


def cache_dir() -> Path:
    """Return the folder of large build results, which all checkouts share."""
    if chosen := os.environ.get("LLMSERVICE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmservice"


def environment_path() -> Path:
    """Return the path of the environment for the current lock file, which may not exist yet."""
    inputs = hashlib.sha256(PYTHON_VERSION.encode() + b"\0" + REQUIREMENTS.read_bytes())
    return cache_dir() / "engine-env" / inputs.hexdigest()[:16]


def is_complete(environment: Path) -> bool:
    """Return whether the environment is complete; False also if its base interpreter is missing."""
    return (environment / "bin" / "python").exists()


@contextmanager
def only_builder(environment: Path) -> Iterator[None]:
    """Keep other processes from building the same environment at the same time."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(environment: Path) -> None:
    """Install the locked requirements beside their final place, then move them in one step."""
    unfinished = environment.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"Installing vLLM for CPU into {environment} (once, about 6 GB)", file=sys.stderr)
    # The scripts of a relocatable environment find their interpreter after the rename.
    uv("venv", "--quiet", "--relocatable", "--python", PYTHON_VERSION, str(unfinished))
    uv(
        *("pip", "install", "--quiet", "--require-hashes", "--no-deps", "--compile-bytecode"),
        *("--python", str(unfinished / "bin" / "python"), "-r", str(REQUIREMENTS)),
    )
    shutil.rmtree(environment, ignore_errors=True)
    unfinished.rename(environment)


def uv(*arguments: str) -> None:
    """Run uv with its output on standard error, because standard output contains only the path."""
    subprocess.run(["uv", *arguments], check=True, stdout=sys.stderr)


def main() -> int:
    """Create the environment if it is missing, and print its path."""
    environment = environment_path()
    if not is_complete(environment):
        with only_builder(environment):
            if not is_complete(environment):
                try:
                    build(environment)
                except FileNotFoundError:
                    print("uv is not on PATH; `make setup` installs it", file=sys.stderr)
                    return 1
                except subprocess.CalledProcessError as failure:
                    print(f"uv could not build the environment: {failure}", file=sys.stderr)
                    return failure.returncode
    print(environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
