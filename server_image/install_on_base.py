"""Install the model server into the image's Python, and fail if any other package changes.

The vLLM project tests its image as a whole, so an image with one package replaced is untested. The
model server is therefore installed without its dependencies. The few packages that a base lacks are
installed in the versions that requirements/cpu.txt locks. This step of the image build fails if a
package of the base changes, if the base lacks a requirement of the model server, or if the
installed command does not run.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

PACKAGE = "llmservice-server"
ADDED = ("google-re2",)
"""Packages that the model server needs and vLLM does not install. They have no dependencies."""


def installed() -> dict[str, str]:
    """Return normalized name -> version, for every package that this Python can import."""
    return {
        re.sub(r"[-_.]+", "-", distribution.name).lower(): distribution.version
        for distribution in metadata.distributions()
    }


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return a line for each package of the base that was changed or removed."""
    return [
        f"{name} {version} -> {after.get(name, 'removed')}"
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def unmet(requirements: list[str], present: dict[str, str]) -> list[str]:
    """Return the requirements that the packages in `present` do not meet."""
    # Every base with vLLM has this package. The import is here, so that main() can first report
    # that the package is missing.
    from packaging.requirements import Requirement

    missing = []
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name not in present:
            missing.append(f"{line} (not there)")
        elif not requirement.specifier.contains(present[name], prereleases=True):
            missing.append(f"{line} (has {present[name]})")
    return missing


def locked(requirements: str, names: Iterable[str]) -> str:
    """Return the lines of a lock file about these packages: versions and hashes."""
    blocks = re.findall(r"^[a-z0-9][^\n]*(?:\n[ \t][^\n]*)*", requirements, re.MULTILINE)
    return "\n".join(each for each in blocks if each.partition("==")[0] in names) + "\n"


def add(names: Iterable[str], lock: Path) -> None:
    """Install packages in the versions of the lock file, and check their hashes."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(locked(lock.read_text(), names))
        file.flush()
        uv_install("--require-hashes", "-r", file.name)


def install(source: Path) -> None:
    """Build and install the package without its dependencies."""
    uv_install(str(source))


def block_signals(command: Path) -> None:
    """Make an installed command start with SIGTERM and SIGINT blocked, until it unblocks them.

    A blocked signal stays pending. Otherwise, process 1 of a container would lose a signal that
    arrives while the interpreter starts, because the process has no handler yet.
    """
    interpreter, _, program = command.read_text().partition("\n")
    path = interpreter.removeprefix("#!")
    command.write_text(f"#!/usr/bin/env -S --block-signal=TERM,INT {path}\n{program}")


def uv_install(*what: str) -> None:
    """Install into this Python, without dependencies."""
    subprocess.run(
        [
            *("uv", "pip", "install", "--python", sys.executable, "--break-system-packages"),
            *("--no-deps", "--link-mode", "copy", "--compile-bytecode", *what),
        ],
        check=True,
    )


def main() -> int:
    """Install from the folder in the first argument; return the exit status of the build step."""
    if util.find_spec("vllm") is None or util.find_spec("packaging") is None:
        print(f"the base image has no vLLM that {sys.executable} can import", file=sys.stderr)
        return 1
    before = installed()
    if absent := [name for name in ADDED if name not in before]:
        add(absent, Path(sys.argv[1], "requirements", "cpu.txt"))
    install(Path(sys.argv[1]))
    after = installed()
    if changed := changes({k: v for k, v in before.items() if k != PACKAGE}, after):
        print(
            "installing the model server changed packages of the base image, which only its"
            " makers may do; keep --no-deps and loosen our pins:\n  " + "\n  ".join(changed),
            file=sys.stderr,
        )
        return 1
    if missing := unmet(metadata.requires(PACKAGE) or [], after):
        print(
            "the base image does not meet what the model server needs; use a base that has these"
            " or change server_image/pyproject.toml:\n  " + "\n  ".join(missing),
            file=sys.stderr,
        )
        return 1
    command = shutil.which(PACKAGE)
    if command is None:
        print(f"add the folder of {PACKAGE} to PATH: {os.environ['PATH']}", file=sys.stderr)
        return 1
    block_signals(Path(command))
    subprocess.run([command, "--version"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
