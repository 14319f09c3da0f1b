"""Recipes of the images, and the tags that follow from them.

A tag is a hash of all inputs of its image, so an image with the tag is always up to date. No
unchanged image is built twice, and no node runs a stale image.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import localkube

REPOSITORY = Path(localkube.__file__).parents[4]
"""Root of the checkout. The paths in Dockerfiles are relative to it."""

REGISTRY = "localhost:5000"
"""Registry that the nodes pull from, as an address in the cluster's network."""

_FROM = re.compile(r"^FROM\s+(?P<source>\S+)\s+AS\s+(?P<name>\S+)\s*$", re.MULTILINE)
_USED_ARGUMENT = re.compile(r"\$\{(\w+)\}")
_USED_STAGE = re.compile(r"^FROM\s+(\S+)|\bfrom=([\w-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Base:
    """The Debian base of every image, which debootstrap makes."""

    suite: str = "bookworm"
    packages: tuple[str, ...] = ("ca-certificates",)

    def tag(self, _root: Path = REPOSITORY) -> str:
        return _digest([self.suite, *self.packages])

    def reference(self, root: Path = REPOSITORY) -> str:
        return f"localhost/llmservice/debian-base:{self.tag(root)}"


@dataclass(frozen=True)
class Image:
    """One target of a Dockerfile, built on another image."""

    name: str
    dockerfile: str
    target: str
    parent: "Image | Base"
    parent_argument: str
    """The build argument that names the parent in the target's FROM line."""
    sources: tuple[str, ...]
    """Files and folders that the target reads from the checkout."""
    for_nodes: bool = True
    """False for a base image that no pod runs."""
    size_gb: int = 1
    """Free disk space in GB that the build needs, rounded up."""
    stand_ins: tuple[tuple[str, str], ...] = ()
    """Build arguments that name a registry's image, each with the stage that replaces the image."""

    def tag(self, root: Path = REPOSITORY) -> str:
        instructions = stage_closure(
            (root / self.dockerfile).read_text(),
            self.target,
            *(stage for _, stage in self.stand_ins),
        )
        return _digest([self.parent.tag(root), instructions, *_contents(root, self.sources)])

    def reference(self, root: Path = REPOSITORY) -> str:
        host = REGISTRY if self.for_nodes else "localhost"
        return f"{host}/llmservice/{self.name}:{self.tag(root)}"


DEBIAN = Base()

OPERATOR_DEPENDENCIES = Image(
    name="operator-dependencies",
    dockerfile="operator/Dockerfile",
    target="dependencies",
    parent=DEBIAN,
    parent_argument="BASE",
    sources=(
        "uv.lock",
        "pyproject.toml",
        "operator/pyproject.toml",
        "server_image/pyproject.toml",
        "e2e/cluster/pyproject.toml",
    ),
    for_nodes=False,
)

OPERATOR = Image(
    name="operator",
    dockerfile="operator/Dockerfile",
    target="operator",
    parent=OPERATOR_DEPENDENCIES,
    parent_argument="DEPENDENCIES",
    sources=("operator/pyproject.toml", "operator/src"),
)

ROUTER = Image(
    name="router",
    dockerfile="operator/Dockerfile",
    target="router",
    parent=OPERATOR,
    parent_argument="OPERATOR",
    sources=(),
    stand_ins=(("ENVOY", "envoy-from-pypi"),),
)

CPU_ENGINE = Image(
    name="cpu-engine",
    dockerfile="server_image/Dockerfile",
    target="cpu-engine",
    parent=DEBIAN,
    parent_argument="BASE",
    sources=("server_image/requirements/cpu.txt",),
    for_nodes=False,
    size_gb=12,
)

_SERVER = ("server_image/install_on_base.py", "server_image/pyproject.toml", "server_image/src")

SERVER_CPU = Image(
    name="server-cpu",
    dockerfile="server_image/Dockerfile",
    target="cpu",
    parent=CPU_ENGINE,
    parent_argument="CPU_ENGINE",
    sources=_SERVER,
)

GPU_STAND_IN_BASE = Image(
    name="gpu-stand-in-base",
    dockerfile="server_image/Dockerfile",
    target="gpu-stand-in-base",
    parent=CPU_ENGINE,
    parent_argument="CPU_ENGINE",
    sources=(),
    for_nodes=False,
)

SERVER_GPU = Image(
    name="server-gpu",
    dockerfile="server_image/Dockerfile",
    target="gpu",
    parent=GPU_STAND_IN_BASE,
    parent_argument="VLLM_BASE",
    sources=_SERVER,
)

NAMED = {"cpu": SERVER_CPU, "gpu": SERVER_GPU, "operator": OPERATOR, "router": ROUTER}
"""Name on the command line -> image."""


def stage_closure(dockerfile: str, *targets: str) -> str:
    """Return the instructions that determine the targets, without comments.

    These are the stages of the targets, and all stages that they name, directly or through others.
    A stage that a build argument replaces is left out, because the image used in its place has its
    own tag.
    """
    text = re.sub(r"^\s*#.*\n", "", dockerfile, flags=re.MULTILINE)
    text = re.sub(r"\n{2,}", "\n", text)
    starts = list(_FROM.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    stages = {
        start["name"]: text[start.start() : end] for start, end in zip(starts, ends, strict=True)
    }
    wanted: list[str] = []
    waiting = [*targets]
    while waiting:
        name = waiting.pop()
        if name in stages and name not in wanted:
            wanted.append(name)
            waiting += [found for pair in _USED_STAGE.findall(stages[name]) for found in pair]
    body = "".join(stages[name] for name in sorted(wanted))
    used = set(_USED_ARGUMENT.findall(body))
    arguments = [
        line
        for line in text[: starts[0].start()].splitlines(keepends=True)
        if line.removeprefix("ARG ").partition("=")[0].strip() in used
    ]
    return "".join(arguments) + body


def lineage(image: Image) -> list[Image]:
    """Return the image and its parents without the Debian base, in the order of their builds."""
    older = lineage(image.parent) if isinstance(image.parent, Image) else []
    return [*older, image]


def _contents(root: Path, sources: Iterable[str]) -> Iterator[str | bytes]:
    for path in sorted(file for source in sources for file in _files(root / source)):
        yield path.relative_to(root).as_posix()
        yield path.read_bytes()


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (
            file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts
        )
    else:
        yield path


def _digest(parts: Iterable[str | bytes]) -> str:
    """Return 12 hex digits. Lengths are hashed too, so that different lists give different
    digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()[:12]
