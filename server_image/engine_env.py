"""Print the paths of Python environments that run the real engine on a CPU; create missing ones.

    engine_env.py [VERSION ...]      the pinned version of vLLM by default
    engine_env.py all

The environment of the pinned version contains exactly the packages that requirements/cpu.txt locks
(about 6 GB). The environment of another version contains the Python code of that version (about 100
MB) and the packages that this code needs in other versions than the pinned vLLM does. A file in
requirements/versions locks these packages. The compiled parts and all other packages are those of
the pinned version. So the tests run the code of every supported version, even if no build for CPUs
exists yet.

An environment is a folder in the cache folder, and its name is the hash of its inputs.
`llmservice_server` is not installed there: callers put server_image/src on PYTHONPATH, so that a
code change needs no new environment.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent / "requirements"
REQUIREMENTS = FOLDER / "cpu.txt"
PYTHON_VERSION = "3.11"
"""Python version of the locked requirements; the CPU image has the same version."""

DEBIAN_PYTHON = Path(f"/usr/bin/python{PYTHON_VERSION}")
"""Interpreter of the CPU image. On a machine that has it too, new environments use it.

It is compiled with more optimizations than a Python of pyenv. The imports of vLLM then take a tenth
less CPU time.
"""

PINNED = (FOLDER / "vllm-version").read_text().strip()
"""Version of vLLM in every image."""

OTHERS = {path.stem: path for path in sorted((FOLDER / "versions").glob("*.txt"))}
"""Version -> file with its locked requirements, for every other supported version."""

VERSIONS = (PINNED, *OTHERS)


def cache_dir() -> Path:
    """Return the folder of large build results, which all checkouts share."""
    if chosen := os.environ.get("LLMSERVICE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmservice"


def environment_path(version: str = PINNED) -> Path:
    """Return the path of the environment for the current lock files, whether or not it exists."""
    inputs = hashlib.sha256(PYTHON_VERSION.encode() + b"\0" + REQUIREMENTS.read_bytes())
    if version != PINNED:
        inputs.update(b"\0" + OTHERS[version].read_bytes())
    return cache_dir() / "engine-env" / inputs.hexdigest()[:16]


def is_complete(environment: Path) -> bool:
    """Return whether the environment is complete; False also if its base interpreter is missing."""
    return python_of(environment).exists()


def python_of(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / "bin" / "python"


def engine_python(version: str = PINNED) -> Path:
    """Return the interpreter of an engine environment; create a missing environment first."""
    return python_of(make(version))


@contextmanager
def only_builder(environment: Path) -> Iterator[None]:
    """Keep other processes from building the same environment at the same time."""
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(version: str = PINNED) -> Path:
    """Return the environment of a version, and create it if it is missing.

    Raises CalledProcessError when a package cannot be installed, and FileNotFoundError without uv.
    """
    environment = environment_path(version)
    base = None if version == PINNED else make()
    if not is_complete(environment):
        with only_builder(environment):
            if not is_complete(environment):
                build(environment, version, base)
    return environment


def build(environment: Path, version: str, base: Path | None) -> None:
    """Install the locked requirements into a folder of another name, then rename it in one step."""
    unfinished = environment.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    size = "about 6 GB" if base is None else "about 100 MB, for which it reads 0.5 GB"
    print(f"Installing vLLM {version} for CPU into {environment} (once, {size})", file=sys.stderr)
    if base is None:
        # The scripts of a relocatable environment find their interpreter after the rename.
        make_empty(unfinished)
        locked = ("--require-hashes", "-r", str(REQUIREMENTS))
        install(unfinished, "--compile-bytecode", *locked)
    else:
        lay_over(base, unfinished, ("--require-hashes", "-r", str(OTHERS[version])))
    shutil.rmtree(environment, ignore_errors=True)
    unfinished.rename(environment)


def make_empty(environment: Path) -> None:
    """Create an environment without packages."""
    python = str(DEBIAN_PYTHON) if DEBIAN_PYTHON.exists() else PYTHON_VERSION
    uv("venv", "--quiet", "--relocatable", "--python", python, str(environment))


def lay_over(base: Path, environment: Path, requirements: Sequence[str]) -> None:
    """Create an environment with the Python code of another vLLM, and the rest from `base`.

    The code comes from the wheel for GPUs, which exists for every version. Its compiled parts are
    replaced by those of `base`.
    """
    # Otherwise, uv would keep the whole wheel in its cache.
    extend(base, environment, "--no-cache", *requirements)
    ours, theirs = site_packages(environment), site_packages(base)
    for compiled in (*ours.glob("vllm/**/*.so"), ours / "vllm" / "vllm-rs"):
        compiled.unlink(missing_ok=True)
    for compiled in theirs.glob("vllm/*.so"):
        (ours / "vllm" / compiled.name).symlink_to(compiled)
    # vLLM recognises its build for CPUs by the version of the distribution.
    (metadata,) = ours.glob("vllm-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join(f"{x}+cpu" if x.startswith("Version: ") else x for x in lines))


def extend(base: Path, environment: Path, *requirements: str) -> None:
    """Create an environment with the requirements; it takes all other packages from `base`."""
    uv("venv", "--quiet", "--relocatable", "--python", str(python_of(base)), str(environment))
    install(environment, *requirements)
    added = f"import site; site.addsitedir({str(site_packages(base))!r})\n"
    (site_packages(environment) / "base.pth").write_text(added)


def site_packages(environment: Path) -> Path:
    """Return the folder of an environment's packages."""
    return environment / "lib" / f"python{PYTHON_VERSION}" / "site-packages"


def install(environment: Path, *arguments: str) -> None:
    """Install the named packages without their dependencies."""
    python = str(python_of(environment))
    uv("pip", "install", "--quiet", "--no-deps", "--python", python, *arguments)


def uv(*arguments: str) -> None:
    """Run uv with its output on standard error, because standard output contains only paths."""
    subprocess.run(["uv", *arguments], check=True, stdout=sys.stderr)


def main() -> int:
    """Create the environments that are missing, and print their paths."""
    wanted = sys.argv[1:] or [PINNED]
    if unknown := [each for each in wanted if each not in (*VERSIONS, "all")]:
        known = ", ".join(VERSIONS)
        print(
            f"no requirements for vLLM {', '.join(unknown)}: choose from {known}", file=sys.stderr
        )
        return 1
    try:
        for version in VERSIONS if "all" in wanted else wanted:
            print(make(version))
    except FileNotFoundError:
        print("uv is not on PATH; `make setup` installs it", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failure:
        print(f"uv could not build the environment: {failure}", file=sys.stderr)
        return failure.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
