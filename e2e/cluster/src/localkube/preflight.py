"""Checks the machine before a command starts, and reports all missing requirements at once."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from localkube import binaries, cgroups, paths
from localkube.errors import LocalkubeError

API_ONLY_PACKAGES = {"iproute2": "ip", "util-linux": "nsenter", "procps": "sysctl"}
NODE_PACKAGES = {
    "conntrack": "conntrack",
    "containerd": "containerd",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "docker-registry": "docker-registry",
    "iptables": "iptables",
    "nftables": "nft",
    "runc": "runc",
}
IMAGE_PACKAGES = {"buildah": "buildah", "debootstrap": "debootstrap"}
COMPILER_PACKAGES = {"g++": "g++", "python3-dev": "python3-config"}
"""Debian packages, each with a program that only exists if the package is installed. The build of
the package for suffix decoding needs the compilers."""

GO_NEEDED = (1, 26)
DISK_GB_TO_BUILD = 10
"""Free disk space in GB for a build. Go's module and build caches take about 6 GB, the programs 0.3
GB."""
DISK_GB_TO_RUN = 2
"""Free disk space in GB for a run: etcd, logs and small images. Builds of images check separately
that they have enough."""
DISK_GB_FROM_NOTHING = 45
"""Free disk space in GB when nothing is cached: programs, models, the engine's environment and the
images."""


@dataclass(frozen=True)
class Facts:
    """Facts about the machine, which the checks use."""

    root: bool
    missing_packages: Sequence[str] = ()
    go: tuple[int, int] | None = None
    to_build: Sequence[str] = ()
    from_nothing: bool = False
    """True if images and models are needed too and no image is cached yet."""
    disk_free_gb: dict[Path, float] = field(default_factory=dict)
    """Folder -> free space in GB, for the folders of the cache and the state."""
    missing_controllers: Sequence[str] = ()


def problems(facts: Facts) -> list[str]:
    """Return the problems that prevent a start, each with the action to take. An empty list means
    that there are none."""
    found = []
    if not facts.root:
        found.append("Network namespaces and containers need root: run it as root (sudo).")
    if facts.missing_packages:
        names = " ".join(facts.missing_packages)
        found.append(
            f"Debian packages are missing: {names}\n"
            f"  Install them: localkube setup\n"
            f"  which runs: apt-get install --no-install-recommends --yes {names}"
        )
    if facts.go is None:
        wanted = ".".join(map(str, GO_NEEDED))
        found.append(f"Go is missing: install Go {wanted} or newer from https://go.dev/dl/.")
    elif facts.go < GO_NEEDED:
        have, wanted = (".".join(map(str, each)) for each in (facts.go, GO_NEEDED))
        found.append(f"Go {have} is too old: install Go {wanted} or newer, https://go.dev/dl/.")
    needed = DISK_GB_TO_BUILD if facts.to_build else DISK_GB_TO_RUN
    if facts.from_nothing:
        needed = DISK_GB_FROM_NOTHING
    for folder, free in facts.disk_free_gb.items():
        if free < needed:
            found.append(
                f"The disk of {folder} is too full: {needed} GB needed, {free:.1f} GB free. "
                "Free disk space, or set LLMSERVICE_CACHE to a folder on another disk."
            )
    if facts.missing_controllers:
        names = ", ".join(facts.missing_controllers)
        found.append(f"Control groups are missing in {cgroups.MOUNT}: {names}. Mount them.")
    return found


def check(*, api_only: bool, with_images: bool = False) -> None:
    """Raise LocalkubeError with all problems, so that a user can solve them together.

    `with_images` also checks the requirements of a demo or a whole test run, which would otherwise
    fail only after half an hour.
    """
    facts = look(api_only=api_only)
    if with_images:
        facts = replace(facts, from_nothing=not (paths.cache_dir() / "images").exists())
    if found := problems(facts):
        raise LocalkubeError("This machine is not ready.\n" + "\n".join(f"- {p}" for p in found))


def look(*, api_only: bool) -> Facts:
    go = go_version()
    return Facts(
        root=os.geteuid() == 0,
        missing_packages=missing_packages(API_ONLY_PACKAGES | ({} if api_only else NODE_PACKAGES)),
        go=go,
        to_build=[module.name for module in binaries.missing(binaries.modules())] if go else [],
        disk_free_gb={
            folder: shutil.disk_usage(_existing(folder)).free / 1e9
            for folder in (paths.cache_dir(), paths.STATE_ROOT)
        },
        missing_controllers=_missing_controllers(),
    )


def missing_packages(packages: dict[str, str]) -> list[str]:
    return [package for package, program in packages.items() if not shutil.which(program)]


def install_packages() -> None:
    """Install the Debian packages for clusters with nodes and for builds."""
    wanted = missing_packages(
        API_ONLY_PACKAGES | NODE_PACKAGES | IMAGE_PACKAGES | COMPILER_PACKAGES
    )
    if not wanted:
        return
    if not shutil.which("apt-get"):
        raise LocalkubeError(f"There is no apt-get. Install in another way: {' '.join(wanted)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--no-install-recommends", "--yes", *wanted]
    for command in (["apt-get", "update"], install):
        if subprocess.run(command, env=environment, check=False).returncode:
            raise LocalkubeError(f"{' '.join(command)} failed: see its output above.")


def go_version() -> tuple[int, int] | None:
    """Return the version of the Go toolchain, or None if there is no Go."""
    if not shutil.which("go"):
        return None
    return parse_go_version(binaries.toolchain())


def parse_go_version(text: str) -> tuple[int, int] | None:
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _missing_controllers() -> list[str]:
    """Return the cgroup controllers that the kubelet needs and the machine lacks."""
    needed = ["cpu", "cpuset", "memory", "pids"]
    if cgroups.unified():
        available = (cgroups.MOUNT / "cgroup.controllers").read_text().split()
        return [name for name in needed if name not in available]
    needed += ["cpuacct", "freezer"]
    return [name for name in needed if not (cgroups.MOUNT / name).is_dir()]


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
