"""Run the test tiers one after another and say at the end which ran and how many tests each.

A tier is a set of pytest paths and the cluster that they need. A tier that cannot start has failed:
nothing here skips. `make test` runs all; `make tier T=NAME` runs one.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".tiers"

LINT = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy", "operator", "server_image", "e2e", "charts", "bench", "conftest.py"),
    ("lint-imports", "--no-cache"),
    (
        "yamllint",
        "--strict",
        "crds",
        "charts/llmservice-operator/values.yaml",
        "charts/llmservice-operator/Chart.yaml",
    ),
)
"""The checks without a test function, in the order in which they fail fastest."""


@dataclass(frozen=True)
class Tier:
    """One group of tests with the same needs."""

    name: str
    proves: str
    paths: tuple[str, ...]
    cluster: tuple[str, ...] | None = None
    """Options of `localkube up` for the cluster that the tests run inside; None for none."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """What has to be built first, while package registries can still be reached."""
    exports: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Variables for the tests, each with the command that prints its value; run after `prepare`."""


TIERS = (
    Tier(
        "unit",
        "builders, status, queue, server and driver without any outside system",
        ("operator/tests/unit", "server_image/tests/unit", "e2e/cluster/tests/unit", "e2e/unit"),
    ),
    Tier(
        "bench",
        "the scaling core against simulated engines: a slice of `make bench-scaling`",
        ("bench/tests",),
    ),
    Tier(
        "chart",
        "every rendering of the chart is valid, restricted and minimal in rights",
        ("charts/llmservice-operator/tests/render",),
        prepare=(("localkube", "build"),),
    ),
    Tier(
        "api",
        "CRD, operator and chart against a real API server",
        ("operator/tests/api", "charts/llmservice-operator/tests/install"),
        cluster=("--api-only",),
    ),
    Tier(
        "engine",
        "the model server on a real vLLM, and the operator's arguments before its parser",
        ("server_image/tests/engine", "operator/tests/engine"),
        prepare=(("python", "server_image/engine_env.py"), ("localkube", "models")),
    ),
    Tier(
        "cluster",
        "the local Kubernetes, its images, models and hub",
        ("e2e/cluster/tests/real",),
        prepare=(("localkube", "models"),),
    ),
    Tier(
        "e2e",
        "chart, operator and vLLM together on a full cluster",
        ("e2e/tests",),
        cluster=(),
        prepare=(("localkube", "models"),),
        exports=(("LLMSERVICE_E2E_IMAGES", ("localkube", "images", "build", "all", "--json")),),
    ),
)


@dataclass(frozen=True)
class Result:
    """What one tier did: pytest's own counts and the seconds it took."""

    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def ok(self) -> bool:
        """A tier that ran no test proves nothing, so it has failed."""
        return self.failed == 0 and self.skipped == 0 and self.passed > 0


def run_lint() -> Result:
    """Run every check, also after one has failed: a reader wants the whole list."""
    started = time.monotonic()
    failed = 0
    for command in LINT:
        print(f"==> {' '.join(command)}", flush=True)
        failed += subprocess.run(command, cwd=ROOT, check=False).returncode != 0
    return Result("lint", len(LINT) - failed, failed, 0, time.monotonic() - started)


def run_tier(tier: Tier, *, on_kubeconfig: bool) -> Result:
    """Bring up what the tier needs, run its tests, take down what it brought up.

    With `on_kubeconfig` the tests run on the cluster of KUBECONFIG instead, without those that need
    the node, the GPUs or the audit log of a local one.
    """
    report = RESULTS / f"{tier.name}.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    pytest = ["pytest", *tier.paths, f"--junitxml={report}", "-o", f"cache_dir=.tiers/{tier.name}"]
    try:
        for command in () if on_kubeconfig else tier.prepare:
            subprocess.run(command, cwd=ROOT, check=True)
        exported = {
            name: os.environ.get(name) or printed_by(command) for name, command in tier.exports
        }
        if on_kubeconfig:
            pytest += ["-m", "not local"]
        with cluster_for(tier, on_kubeconfig=on_kubeconfig) as prefix:
            environment = {**os.environ, **exported}
            subprocess.run([*prefix, *pytest], cwd=ROOT, env=environment, check=False)
    except subprocess.CalledProcessError as error:
        print(f"tier {tier.name}: {' '.join(error.cmd)} failed with status {error.returncode}")
    return read_report(tier.name, report, time.monotonic() - started)


def printed_by(command: tuple[str, ...]) -> str:
    """What a command prints on its standard output; its progress still reaches the terminal."""
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


@contextlib.contextmanager
def cluster_for(tier: Tier, *, on_kubeconfig: bool) -> Iterator[list[str]]:
    """The command prefix under which the tier's tests see their cluster."""
    if tier.cluster is None or on_kubeconfig:
        yield []
        return
    name = f"test-{tier.name}"
    subprocess.run(["localkube", "down", "--name", name], cwd=ROOT, check=True)
    try:
        subprocess.run(["localkube", "up", "--name", name, *tier.cluster], cwd=ROOT, check=True)
        yield ["localkube", "exec", "--name", name, "--"]
    finally:
        subprocess.run(["localkube", "down", "--name", name], cwd=ROOT, check=True)


def read_report(name: str, report: Path, seconds: float) -> Result:
    """Pytest's counts; without a report (it never got that far) the tier has failed."""
    if not report.exists():
        return Result(name, 0, 1, 0, seconds)
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, "0")) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return Result(name, max(0, total - failed - skipped), failed, skipped, seconds)


def print_summary(results: list[Result]) -> None:
    """One line a tier, then a closing line in pytest's own form."""
    print("\n" + f"{'tier':<10}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for result in results:
        print(
            f"{result.name:<10}{result.passed:>8}{result.failed:>8}{result.skipped:>9}"
            f"{result.seconds:>9.0f}{'' if result.ok else '   FAILED'}"
        )
    counts = [
        f"{number} {word}"
        for number, word in (
            (sum(result.failed for result in results), "failed"),
            (sum(result.passed for result in results), "passed"),
            (sum(result.skipped for result in results), "skipped"),
        )
        if number or word == "passed"
    ]
    seconds = sum(result.seconds for result in results)
    print(f" {', '.join(counts)} in {seconds:.2f}s ".center(80, "="), flush=True)


def main() -> int:
    """Run the named tiers, or all."""
    names = ["lint", *(tier.name for tier in TIERS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TIER", help=f"any of {', '.join(names)}")
    parser.add_argument(
        "--on-kubeconfig",
        action="store_true",
        help="run on the cluster of KUBECONFIG; it is changed: use one that is for tests",
    )
    options = parser.parse_args()
    wanted = options.names or names
    if wanted == ["list"]:
        print(f"{'lint':<10}style, types, the layer contract, YAML")
        for tier in TIERS:
            print(f"{tier.name:<10}{tier.proves}")
        return 0
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no tier {', '.join(unknown)}: choose from {', '.join(names)}")

    RESULTS.mkdir(exist_ok=True)
    results = []
    for name in names:
        if name not in wanted:
            continue
        print(f"\n==> tier {name}", flush=True)
        chosen = next((tier for tier in TIERS if tier.name == name), None)
        results.append(
            run_tier(chosen, on_kubeconfig=options.on_kubeconfig) if chosen else run_lint()
        )
    print_summary(results)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
