"""Builds the cluster's programs from their Go modules, once per version, into the cache."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localkube import paths, progress
from localkube.errors import LocalkubeError

KUBERNETES_VARIABLE = "LOCALKUBE_KUBERNETES"
"""Environment variable that chooses the Kubernetes version of a cluster, such as 1.34."""


@dataclass(frozen=True)
class Module:
    """One Go module below go/ and the program that is built from it."""

    name: str
    package: str = "."
    links: Sequence[str] = ()
    """Further names of the program, when one executable contains several programs."""
    flags: str = "-s -w"
    tags: str = ""
    """Build tags, separated by commas."""
    minutes: int = 1
    """Approximate duration in minutes of a first build on two cores. It is shown at the start."""
    go_module: str = ""
    """Folder below go/; empty if the folder has the name of the program."""
    modfile: str = "go.mod"
    """File with the locked dependencies. A program with several versions has a file for each."""

    @property
    def source(self) -> Path:
        return paths.go_sources() / (self.go_module or self.name)

    @property
    def inputs(self) -> Sequence[Path]:
        """Input files of the build, without the locked dependencies of other versions."""
        locks = (self.modfile, self.modfile.removesuffix(".mod") + ".sum")
        return [
            file
            for file in sorted(self.source.iterdir())
            if file.name in locks or file.suffix not in (".mod", ".sum")
        ]


def _version_flags(version: str) -> str:
    major, minor, _ = version.removeprefix("v").split(".")
    stamp = "-X k8s.io/component-base/version"
    return f"-s -w {stamp}.gitVersion={version} {stamp}.gitMajor={major} {stamp}.gitMinor={minor}"


KUBERNETES = Module(
    "kubernetes",
    links=(
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubectl",
        "kubelet",
    ),
    minutes=9,
)
OTHERS = (
    Module("coredns", minutes=2),
    Module("helm", package="helm.sh/helm/v4/cmd/helm", minutes=3),
    Module("pause"),
)

_KEDA = "github.com/kedacore/keda/v2/cmd"
KEDA = (
    Module("keda-operator", package=f"{_KEDA}/operator", minutes=10, go_module="keda"),
    Module("keda-adapter", package=f"{_KEDA}/adapter", minutes=2, go_module="keda"),
)
"""Additional programs of a cluster with KEDA."""

PROMTOOL = Module(
    "promtool",
    package="github.com/prometheus/prometheus/cmd/promtool",
    minutes=5,
    go_module="prometheus",
    # Service discovery, which the tests of rules do not use, has the clients of twenty clouds.
    tags="remove_all_sd",
)
"""Tests Prometheus rules. Clusters do not need it."""

PROMETHEUS = Module(
    "prometheus",
    package="github.com/prometheus/prometheus/cmd/prometheus",
    minutes=3,
    go_module="prometheus",
    # Without the tag builtinassets, it has no web pages, which would need npm. Its API is complete.
    tags="remove_all_sd,enable_kubernetes_sd",
)
"""Additional program of a cluster whose metrics are scraped."""


def kubernetes_versions() -> Mapping[str, tuple[str, str]]:
    """Return the Kubernetes versions that a cluster can have. The default is first.

    The key is the minor version. The value is the full version and the file with its locked
    dependencies.
    """
    found = {}
    source = KUBERNETES.source
    for file in (source / KUBERNETES.modfile, *sorted(source.glob("go-*.mod"), reverse=True)):
        match = re.search(r"^\tk8s\.io/kubernetes (v(\d+\.\d+)\.\d+)$", file.read_text(), re.M)
        if match is None:
            raise LocalkubeError(f"{file} names no release of k8s.io/kubernetes.")
        found[match[2]] = match[1], file.name
    return found


def modules() -> tuple[Module, ...]:
    """Return the programs of a cluster, in the Kubernetes version that the environment chooses.

    Raises LocalkubeError for an unknown version.
    """
    versions = kubernetes_versions()
    chosen = os.environ.get(KUBERNETES_VARIABLE) or next(iter(versions))
    if chosen not in versions:
        raise LocalkubeError(
            f"{KUBERNETES_VARIABLE} is {chosen}: choose one of {', '.join(versions)}, or unset it."
        )
    version, modfile = versions[chosen]
    return replace(KUBERNETES, flags=_version_flags(version), modfile=modfile), *OTHERS


def folder(module: Module) -> Path:
    """Return the folder of the module's programs. It exists only if they are built.

    Its name contains a hash of all inputs: sources, locked dependencies, flags and toolchain.
    """
    digest = hashlib.sha256()
    for source in module.inputs:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    digest.update(f"{module.package}\0{module.flags}\0{toolchain()}{module.tags}".encode())
    return paths.cluster_cache() / "bin" / f"{module.name}-{digest.hexdigest()[:12]}"


def toolchain() -> str:
    """Return the name and version of the Go toolchain, such as `go version go1.26.8
    linux/amd64`.
    """
    if not shutil.which("go"):
        raise LocalkubeError("Go is missing: install it from https://go.dev/dl/.")
    return subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout


def program(name: str) -> Path:
    """Return the path of the program that this name starts.

    Raises KeyError if there is none.
    """
    for module in (*modules(), *KEDA, PROMTOOL, PROMETHEUS):
        if name in (module.name, *module.links):
            return folder(module) / name
    raise KeyError(name)


def missing(wanted: Sequence[Module]) -> list[Module]:
    return [module for module in wanted if not folder(module).exists()]


def build(wanted: Sequence[Module]) -> None:
    """Build the programs that the cache lacks.

    A killed build leaves no incomplete program in the cache.
    """
    if not missing(wanted):
        return
    folders = paths.cluster_cache() / "bin"
    folders.mkdir(parents=True, exist_ok=True)
    with (folders / ".lock").open("w") as lock:
        # Two concurrent builds would need twice the memory for the same result.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build_missing(wanted)


def _build_missing(wanted: Sequence[Module]) -> None:
    for module in missing(wanted):
        label = f"Building {module.name} (first time: about {module.minutes} min)"
        with progress.step(label):
            _build(module)


def _build(module: Module) -> None:
    target = folder(module)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{module.name}-") as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        _go_build(module, made / module.name)
        for link in module.links:
            (made / link).symlink_to(module.name)
        made.rename(target)


def _go_build(module: Module, output: Path) -> None:
    command = [
        "go",
        "build",
        "-buildvcs=false",
        f"-modfile={module.modfile}",
        f"-tags={module.tags}",
        "-ldflags",
        module.flags,
    ]
    done = subprocess.run(
        [*command, "-o", str(output), module.package],
        cwd=module.source,
        env=os.environ | {"CGO_ENABLED": "0"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LocalkubeError(build_failure(module.name, done.stderr))


def module_folder(source: Path, go_module: str) -> Path:
    """Return the folder of a Go module in the version that the go.mod in `source` pins.

    A missing module is downloaded first. Raises LocalkubeError if this fails.
    """
    done = subprocess.run(
        ["go", "mod", "download", "-json", go_module],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LocalkubeError(
            f"The Go module {go_module} cannot be downloaded. Check the network, or set GOPROXY to "
            f"a module proxy that this machine reaches. Go says:\n{done.stdout}{done.stderr}"
        )
    return Path(json.loads(done.stdout)["Dir"])


def build_failure(name: str, stderr: str) -> str:
    """Return the message about a failed build, based on Go's output."""
    tail = "\n".join(stderr.strip().splitlines()[-8:])
    network = ("dial tcp", "no such host", "i/o timeout", "connection refused", "Forbidden")
    if any(sign in stderr for sign in network):
        return (
            f"Building {name} needs Go modules that cannot be downloaded. Check the network, or "
            f"set GOPROXY to a module proxy that this machine reaches. Go says:\n{tail}"
        )
    if "no space left on device" in stderr:
        free = shutil.disk_usage(paths.cache_dir()).free / 1e9
        return f"Building {name} ran out of disk: {free:.1f} GB free, 8 GB needed. Go says:\n{tail}"
    return f"Building {name} failed. Go says:\n{tail}"
