"""Builds each image once with buildah, in a store inside the cache folder."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from localkube import paths, progress
from localkube.errors import CommandFailed, LocalkubeError
from localkube.images.recipes import DEBIAN, NAMED, REPOSITORY, Base, Image, lineage

PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap"}
"""Programs that a build needs, and their Debian packages."""

_FORWARDED = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|HTTP_TIMEOUT|NATIVE_TLS|SYSTEM_CERTS"
    r"|INSECURE_HOST|OFFLINE)|(https?|no|all)_proxy",
    re.IGNORECASE,
)
"""Environment variables with the package index of this machine's uv. The builds use it too."""

_UNREACHABLE = re.compile(
    r"Failed to fetch|Temporary failure|Could not resolve|error sending request|dns error"
    r"|Connection (refused|timed out)|tcp connect error|certificate",
    re.IGNORECASE,
)

KEPT_BUILDS = 3
"""Number of builds of each image that the store keeps. Several checkouts share the store."""

_UV_CACHE = "/run/uv-cache"
_SECRETS = "/run/secrets"


def build(names: Iterable[str]) -> dict[str, str]:
    """Build the missing images of these names, and return name -> reference of each image.

    `gpu` is built on a substitute, because only a registry has the official vLLM image.
    """
    wanted = [NAMED[name] for name in names]
    require_root()
    require_programs(PROGRAMS)
    with Store.open() as store:
        references = {image.name: store.ensure(image) for image in wanted}
        store.forget_old_builds()
        return references


def require_root() -> None:
    if os.geteuid() != 0:
        raise LocalkubeError("Images are built and loaded as root. Use: sudo -E make images")


def require_programs(programs: dict[str, str]) -> None:
    """Raise an error with the command that installs the missing programs."""
    missing = sorted({package for name, package in programs.items() if not shutil.which(name)})
    if missing:
        raise LocalkubeError(
            f"{', '.join(missing)} not found. Run: apt-get install -y {' '.join(missing)}"
        )


class Store:
    """buildah's images and working containers.

    A process locks the store exclusively, or shares it for reading.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)

    @classmethod
    @contextmanager
    def open(cls, *, to_read: bool = False) -> Iterator["Store"]:
        """Wait for the lock and yield the store. With `to_read`, other readers share the lock."""
        store = cls(paths.cache_dir() / "images")
        with (store.folder / "lock").open("w") as lock:
            _acquire(lock, fcntl.LOCK_SH if to_read else fcntl.LOCK_EX)
            yield store

    def command(self, *arguments: str) -> list[str]:
        """Return buildah's command line for this store.

        The storage driver is overlay, because with vfs every layer would contain a copy of the
        gigabytes below it.
        """
        return [
            *("buildah", "--root", str(self.folder / "storage")),
            *("--runroot", str(self.folder / "run"), "--storage-driver", "overlay"),
            *arguments,
        ]

    def environment(self) -> dict[str, str]:
        # TMPDIR also contains the cache mounts of the builds, so everything is in one folder.
        return os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self.temporary)}

    def run(self, *arguments: str) -> str:
        """Run buildah and return its output."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise CommandFailed(f"buildah {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def has(self, reference: str) -> bool:
        return reference in self.references()

    def references(self) -> list[str]:
        """Return the references of all images, the oldest build first."""
        listed = json.loads(self.run("images", "--json") or "[]")
        by_age = sorted(listed, key=lambda image: image["created"])
        return [name for image in by_age for name in image["names"] or ()]

    def forget_old_builds(self) -> None:
        """Remove all but the newest builds of each image.

        A new build of the engine takes gigabytes, so frequent builds would fill the disk within
        days. Layers that a newer image uses stay.
        """
        builds: dict[str, list[str]] = {}
        for reference in self.references():
            builds.setdefault(reference.rpartition(":")[0], []).append(reference)
        for old in (each for found in builds.values() for each in found[:-KEPT_BUILDS]):
            self.run("rmi", old)

    @contextmanager
    def container(self, source: str) -> Iterator[tuple[str, Path]]:
        """Mount a new working container, yield its name and root folder, and then remove it."""
        name = self.run("from", "--pull-never", source)
        try:
            yield name, Path(self.run("mount", name))
        finally:
            self.run("rm", name)

    def ensure(self, image: Image) -> str:
        """Build the image and its parents if the image is missing; return its reference."""
        if self.has(reference := image.reference()):
            return reference
        self._ensure_base(DEBIAN)
        tools = self._ensure_tools()
        for each in lineage(image):
            reference = self._ensure_target(each, tools)
        return reference

    def _ensure_target(self, image: Image, tools: str) -> str:
        while not self.has(reference := image.reference()):
            self._require_disk(image.size_gb)
            with progress.step(f"build {reference}"):
                self.build_target(image, reference, tools)
            if image.reference() != reference:
                progress.say(f"  the sources of {image.name} changed during its build: rebuilding")
                self.run("rmi", reference)
        return reference

    def build_target(
        self, image: Image, reference: str, tools: str, root: Path = REPOSITORY
    ) -> None:
        """Run one target of a Dockerfile in the checkout at `root`."""
        with tempfile.TemporaryDirectory(dir=self.temporary) as secrets:
            options = [
                *("--pull-never", "--file", str(root / image.dockerfile)),
                *("--target", image.target, "--tag", reference),
                *("--build-arg", f"UV={tools}"),
                # All ancestors are named, because a stand-in stage may be built on any of them.
                *(
                    f"--build-arg={each.parent_argument}={each.parent.reference(root)}"
                    for each in lineage(image)
                ),
                *(f"--build-arg={name}={stage}" for name, stage in image.stand_ins),
                *_package_index(Path(secrets)),
            ]
            try:
                self._run_logged(image.name, "bud", *options, str(root))
            finally:
                # buildah leaves a mounted container for each `--mount=from=`, and a killed build
                # leaves all its containers, each with gigabytes. None of them is in use, because
                # this process holds the exclusive lock.
                self.run("rm", "--all")

    def tools(self) -> str:
        """Return the reference of the image that contains this machine's uv."""
        version = subprocess.run(
            ["uv", "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[1]
        return f"localhost/llmservice/uv:{version}"

    def _ensure_tools(self) -> str:
        reference = self.tools()
        if not self.has(reference):
            with self.container("scratch") as (container, root):
                shutil.copy(uv_binary(), root / "uv")
                self.run("commit", "--quiet", container, reference)
        return reference

    def _ensure_base(self, base: Base) -> None:
        if self.has(base.reference()):
            return
        self._require_disk(1)
        with (
            progress.step(f"build {base.reference()} with debootstrap"),
            self.container("scratch") as (container, root),
        ):
            log = self._log("debian-base")
            with log.open("w") as output:
                done = subprocess.run(
                    [
                        *("debootstrap", "--variant=minbase"),
                        *(f"--include={','.join(base.packages)}", base.suite, str(root)),
                    ],
                    stdout=output,
                    stderr=output,
                )
            if done.returncode:
                raise CommandFailed(_explain("debootstrap", log))
            for left_over in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
                shutil.rmtree(root / left_over)
                (root / left_over).mkdir()
            self.run("commit", "--quiet", container, base.reference())

    def _run_logged(self, name: str, *arguments: str) -> None:
        log = self._log(name)
        with log.open("w") as output:
            done = subprocess.run(
                self.command(*arguments), env=self.environment(), stdout=output, stderr=output
            )
        if done.returncode:
            raise CommandFailed(_explain(f"The build of {name}", log))

    def _log(self, name: str) -> Path:
        folder = self.folder / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.log"

    def _require_disk(self, gigabytes: int) -> None:
        free = shutil.disk_usage(self.folder).free / 1e9
        if free < gigabytes:
            raise LocalkubeError(
                f"{self.folder} has {free:.1f} GB free, and this build needs {gigabytes} GB. "
                "Make room, or set LLMSERVICE_CACHE to a folder on another disk."
            )


def _acquire(lock: IO[str], kind: int) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        with progress.step("wait for another build of images"):
            fcntl.flock(lock, kind)


def uv_binary() -> Path:
    """Return the path of the uv binary. The `uv` on PATH may be a script that runs this binary."""
    if not (found := os.environ.get("UV")):
        found = subprocess.run(
            ["uv", "run", "--no-project", "printenv", "UV"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return Path(found)


def _package_index(folder: Path) -> list[str]:
    """Return the options that give a build the package index and uv cache of this machine.

    The settings are passed as build secrets, so that they do not stay in an image.
    """
    variables = {name: value for name, value in os.environ.items() if _FORWARDED.fullmatch(name)}
    options = []
    if bundle := os.environ.get("SSL_CERT_FILE"):
        variables["SSL_CERT_FILE"] = f"{_SECRETS}/ca-bundle"
        options += ["--secret", f"id=ca-bundle,src={bundle}"]
    cache = subprocess.run(
        ["uv", "cache", "dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if Path(cache).is_dir():
        variables["UV_CACHE_DIR"] = _UV_CACHE
        options += ["--volume", f"{cache}:{_UV_CACHE}"]
    assignments = folder / "package-index"
    assignments.touch(mode=0o600)
    assignments.write_text("".join(f"{k}='{v}'\n" for k, v in sorted(variables.items())))
    return [*options, "--secret", f"id=package-index,src={assignments}"]


def _explain(what: str, log: Path) -> str:
    """Return a message with the end of the log, and with advice if a server was unreachable."""
    text = log.read_text(errors="replace")
    lines = "\n".join(f"    {line}" for line in text.splitlines()[-15:])
    message = f"{what} failed; the end of {log}:\n{lines}"
    if _UNREACHABLE.search(text):
        message += (
            "\nA package index may be out of reach: check the network, and set UV_DEFAULT_INDEX, "
            "SSL_CERT_FILE or the proxy variables if this machine needs them."
        )
    return message
