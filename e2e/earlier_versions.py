"""Prepares earlier versions of the project, from which `make test-upgrade` upgrades.

    python e2e/earlier_versions.py [VERSION ...]

A version is a name in KNOWN or any commit. Its images are built by its own recipes. The program
prints the versions as a JSON list, which the test reads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from localkube import paths, progress
from localkube.images.builder import Store
from localkube.images.recipes import REGISTRY

ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Known:
    """A commit from which the upgrade is tested. Its comment in KNOWN says why."""

    commit: str
    announced: str = ""
    """Sentence of the changelog that announces that the upgrade replaces the replicas; empty if it
    must replace none."""


KNOWN: Final[Mapping[str, Known]] = {
    # No tag has this release. Its changelog had no entry for a later version yet.
    "0.1.0": Known(
        "a3f1026df7316b471b7a88ae92dda4278cfe1d62",
        announced="The pods of every service are replaced once",
    ),
    # The parent of the first commit with objects for Prometheus, rules and dashboards in the chart:
    # it has routers, but no monitoring.
    "before-monitoring": Known("e86296f3e868cfda8d0662b85a01746a57ee64f1"),
    # The last commit whose chart has the version 0.1.0.
    "before-0.2.0": Known("8e8f13efd63cdabc13b2d0243acc53c295cc7bbb"),
}
"""Versions by name. Without an argument, the program prepares all of them."""


class NoSuchVersion(Exception):
    """A commit cannot be read. The message says what to do."""


@dataclass(frozen=True)
class Earlier:
    """A prepared version."""

    name: str
    chart: str
    """Folder of the chart."""
    operator: str
    """Reference of the operator's image, as the ones below."""
    server_cpu: str
    router: str
    """Empty if the version has no routers."""
    announced: str
    """As in `Known`."""


def read(file: Path) -> list[Earlier]:
    """Return the versions in a file with the output of this program."""
    return [Earlier(**each) for each in json.loads(file.read_text())]


def prepare(name: str) -> Earlier:
    """Extract a version into the cache and build its images.

    Raises:
        NoSuchVersion: the history of this checkout does not contain the commit.

    """
    known = KNOWN.get(name) or Known(name)
    root = extract(known.commit)
    has_router = " AS router" in (root / "operator" / "Dockerfile").read_text()
    return Earlier(
        name,
        str(root / "charts" / "llmservice-operator"),
        operator=_ensure(root, "operator"),
        server_cpu=_ensure(root, "cpu"),
        router=_ensure(root, "router") if has_router else "",
        announced=known.announced,
    )


def extract(name: str, repository: Path = ROOT) -> Path:
    """Return a folder of the cache with the files of a commit.

    Raises:
        NoSuchVersion: the history of the repository does not contain the commit.

    """
    commit = _resolve(name, repository)
    folder = paths.cache_dir() / "earlier-versions"
    wanted = folder / commit
    if not wanted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            archive = Path(temporary) / "files.tar"
            subprocess.run(
                ["git", "archive", f"--output={archive}", commit], cwd=repository, check=True
            )
            root = Path(temporary) / "files"
            root.mkdir()
            subprocess.run(["tar", "-xf", str(archive)], cwd=root, check=True)
            root.rename(wanted)
    return wanted


def _resolve(name: str, repository: Path) -> str:
    """Return the full hash of a commit."""
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoSuchVersion(
            f"The commit {name} is not in the history of this checkout. If the clone is shallow, "
            "run `git fetch --unshallow`. Or choose another commit: make test-upgrade FROM=COMMIT"
        )
    return done.stdout.strip()


def _ensure(root: Path, image: str) -> str:
    """Build an image of the version at `root` if it is missing; return its reference.

    The repository has the name of the commit, so the store of builds never takes the image for an
    old build of a newer version, which it would remove.
    """
    reference = f"{REGISTRY}/earlier-versions/{root.name[:12]}/{image}:built"
    with Store.open(to_read=True) as store:
        if store.has(reference):
            return reference
    built = _build(root, image)
    with Store.open() as store:
        store.run("tag", built, reference)
    return reference


def _build(root: Path, image: str) -> str:
    """Build an image with the recipes of the version at `root`; return its reference there."""
    # The other version has its own Python environment.
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    command = ["uv", "run", "--quiet", "--frozen", "--no-default-groups", "--package=localkube"]
    done = subprocess.run(
        [*command, "localkube", "images", "build", image, "--json"],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    (reference,) = json.loads(done.stdout).values()
    return str(reference)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Prepare earlier versions of the project, and print them as JSON."
    )
    parser.add_argument(
        "versions",
        nargs="*",
        metavar="VERSION",
        default=list(KNOWN),
        help=f"a commit, or {', '.join(KNOWN)} (default: these)",
    )
    names = parser.parse_args(arguments).versions
    try:
        print(json.dumps([asdict(prepare(name)) for name in names]))
    except NoSuchVersion as problem:
        progress.say(str(problem))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
