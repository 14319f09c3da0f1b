"""Runs the test tiers in several parallel lanes, and prints a summary of their results.

A tier is a set of pytest paths and the cluster that they need. A tier that cannot start, or that
skips a test, has failed. `make test` runs all tiers, and `make tier T=NAME` runs one.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from localkube.paths import cache_dir

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".tiers"

BUDGET_SECONDS = 25 * 60
"""Target duration in seconds of all tiers on two idle cores, when everything is already built.

The summary reports a longer run, but the run does not fail.
"""

LINT = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    (
        "mypy",
        # A check without a cache takes half a minute of CPU time. Checkouts share one cache,
        # because they have most files in common.
        f"--cache-dir={cache_dir() / 'mypy'}",
        *("operator", "server_image", "e2e", "charts", "bench", "testing", "conftest.py"),
    ),
    ("lint-imports", "--no-cache"),
    ("python", "e2e/generated.py", "--check"),
    (
        "yamllint",
        "--strict",
        "crds",
        "charts/llmservice-operator/values.yaml",
        "charts/llmservice-operator/Chart.yaml",
    ),
)
"""Commands of the tier `lint`, in the order in which they run."""


@dataclass(frozen=True)
class Tier:
    """One group of tests with the same needs."""

    name: str
    proves: str
    paths: tuple[str, ...]
    cluster: tuple[str, ...] | None = None
    """Options of `localkube up` for the tests' cluster; None if the tests need no cluster."""
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands that build what the tests need. They run before the tests and outside the cluster's
    network, so that they reach the package registries."""
    leaves_out: tuple[str, ...] = ()
    """Paths below `paths` whose tests another tier or a make target runs."""
    exports: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Environment variables for the tests, each with the command that prints its value. The
    commands run after `prepare`. A variable that is already set keeps its value."""


TIERS = (
    Tier(
        "unit",
        "the operator's builders, status, queue and scaling without any outside system",
        ("operator/tests/unit",),
    ),
    Tier(
        "unit-server",
        "the model server, the local cluster and the documents without any outside system",
        ("server_image/tests/unit", "e2e/cluster/tests/unit", "e2e/unit", "testing/tests"),
    ),
    Tier(
        "bench",
        "the scaling and routing cores against simulated engines",
        ("bench/tests",),
    ),
    Tier(
        "router",
        "the processes of a router pod with a real Envoy, and replicas that answer by a clock",
        ("operator/tests/router",),
    ),
    Tier(
        "chart",
        "every rendering of the chart is valid and restricted, and grants minimal permissions",
        ("charts/llmservice-operator/tests/render",),
        prepare=(("localkube", "build", "--promtool"),),
    ),
    Tier(
        "api",
        "CRD and operator against a real API server",
        ("operator/tests/api",),
        cluster=("--api-only",),
        leaves_out=("operator/tests/api/scaling", "operator/tests/api/faults"),
        prepare=(("localkube", "gateway-api"),),
    ),
    Tier(
        "install",
        "the operator under faults of every kind, and the chart, against a real API server",
        ("operator/tests/api/faults", "charts/llmservice-operator/tests/install"),
        cluster=("--api-only",),
        prepare=(("localkube", "prometheus", "build"),),
    ),
    Tier(
        "scaling",
        "load, metrics API and autoscalers against a real API server and its HPA controller",
        ("operator/tests/api/scaling",),
        cluster=("--api-only",),
    ),
    Tier(
        "engine",
        "the model server on a real vLLM, and the operator's engine arguments in vLLM's parser",
        ("server_image/tests/engine", "operator/tests/engine"),
        prepare=(
            ("python", "server_image/engine_env.py", "all"),
            ("localkube", "models", "--speculation"),
        ),
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
        # Tests that use the whole machine for a long time have their own commands:
        # make test-autoscaling, test-drain, test-faults PART=rollouts, test-monitoring,
        # test-routing and test-upgrade.
        leaves_out=(
            *("e2e/tests/load", "e2e/tests/failed_rollouts", "e2e/tests/monitoring"),
            *("e2e/tests/routing", "e2e/tests/upgrade", "e2e/tests/drain"),
        ),
        prepare=(("localkube", "models"), ("localkube", "prometheus", "build")),
        exports=(("LLMSERVICE_E2E_IMAGES", ("localkube", "images", "build", "all", "--json")),),
    ),
)


Lane = tuple[str, ...]
"""Names of tiers that run one after another, while the other lanes run in parallel."""

LANES: tuple[Lane, ...] = (
    ("unit",),
    ("lint", "chart", "install"),
    ("engine",),
    ("api", "bench"),
    ("scaling", "cluster", "router"),
    ("e2e", "unit-server"),
)
"""Lanes that run in parallel. While the tiers of one lane use the CPU, those of another lane mostly
wait for a period, a timeout or a rollout."""

GIVES_WAY = ("lint", "unit", "unit-server", "bench", "chart")
"""Tiers that measure no time. They run under `nice`, so that the other lanes get CPU time first."""


@dataclass(frozen=True)
class Console:
    """Runs a tier's commands. Their output goes to the terminal, or to a file that is printed when
    the tier has ended.
    """

    log: TextIO | None = None
    gives_way: bool = False

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the root of the repository. The options are those of subprocess.run."""
        output = {} if self.log is None else {"stdout": self.log, "stderr": self.log}
        return subprocess.run(
            [*(("nice",) if self.gives_way else ()), *command],
            **{"cwd": ROOT, "text": True, "check": False, **output, **options},
        )

    def say(self, text: str) -> None:
        """Print a line to the same output as the commands."""
        print(text, file=self.log, flush=True)


@dataclass(frozen=True)
class Result:
    """Result of one tier: the counts of its tests, and its duration in seconds.

    The tier `lint` counts its commands.
    """

    name: str
    passed: int
    failed: int
    skipped: int
    seconds: float

    @property
    def ok(self) -> bool:
        """True if every test of the tier passed. A tier that ran no test proves nothing, so it has
        failed."""
        return self.failed == 0 and self.skipped == 0 and self.passed > 0


def run_lint(console: Console) -> Result:
    """Run every check, even after one has failed, so that the output lists all problems."""
    started = time.monotonic()
    failed = 0
    for command in LINT:
        console.say(f"==> {' '.join(command)}")
        failed += console.run(command).returncode != 0
    return Result("lint", len(LINT) - failed, failed, 0, time.monotonic() - started)


def run_tier(tier: Tier, console: Console, *, on_kubeconfig: bool) -> Result:
    """Bring up the cluster that the tier needs, run its tests, and remove the cluster.

    With `on_kubeconfig`, the tests run on the cluster of KUBECONFIG instead. Tests that need the
    node, the GPUs or the audit log of a local cluster are left out.
    """
    report = RESULTS / f"{tier.name}.xml"
    report.unlink(missing_ok=True)
    started = time.monotonic()
    pytest = ["pytest", *tier.paths, f"--junitxml={report}", "-o", f"cache_dir=.tiers/{tier.name}"]
    pytest += [f"--ignore={path}" for path in tier.leaves_out]
    try:
        for command in () if on_kubeconfig else tier.prepare:
            console.run(command, check=True)
        exported = {
            name: os.environ.get(name) or printed_by(command, console)
            for name, command in tier.exports
        }
        if on_kubeconfig:
            pytest += ["-m", "not local"]
        with cluster_for(tier, console, on_kubeconfig=on_kubeconfig) as prefix:
            console.run([*prefix, *pytest], env={**os.environ, **exported})
    except subprocess.CalledProcessError as error:
        failed = f"{' '.join(error.cmd)} failed with status {error.returncode}"
        console.say(f"tier {tier.name}: {failed}")
    return read_report(tier.name, report, time.monotonic() - started)


def printed_by(command: Sequence[str], console: Console) -> str:
    """Return the standard output of a command. Its standard error goes to the console."""
    return console.run(command, check=True, stdout=subprocess.PIPE).stdout.strip()


@contextlib.contextmanager
def cluster_for(tier: Tier, console: Console, *, on_kubeconfig: bool) -> Iterator[list[str]]:
    """Start the tier's cluster, yield the command prefix that runs the tests in its network, and
    remove the cluster.

    The prefix is empty for a tier without a cluster, and with `on_kubeconfig`.
    """
    if tier.cluster is None or on_kubeconfig:
        yield []
        return
    name = f"tier-{tier.name}"
    console.run(["localkube", "down", "--name", name], check=True)
    try:
        console.run(["localkube", "up", "--name", name, *tier.cluster], check=True)
        yield ["localkube", "exec", "--name", name, "--"]
    finally:
        console.run(["localkube", "down", "--name", name], check=True)


def read_report(name: str, report: Path, seconds: float) -> Result:
    """Return the counts of pytest's report. Without a report, the tier has failed, because it did
    not reach its tests.
    """
    if not report.exists():
        return Result(name, 0, 1, 0, seconds)
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, "0")) for suite in suites)
        for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return Result(name, max(0, total - failed - skipped), failed, skipped, seconds)


def run_named(name: str, console: Console, *, on_kubeconfig: bool) -> Result:
    """Run the tier of this name. The name `lint` runs the checks that are not tests."""
    for tier in TIERS:
        if tier.name == name:
            return run_tier(tier, console, on_kubeconfig=on_kubeconfig)
    return run_lint(console)


@dataclass
class Beside:
    """Runs lanes in parallel.

    The output of each tier is printed as a whole when the tier has ended.
    """

    on_kubeconfig: bool
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the run is interrupted or has ended. A lane then starts no further tier."""

    def run(self, lanes: Sequence[Lane]) -> list[Result]:
        """Run the lanes, and return the results of all their tiers."""
        with ThreadPoolExecutor(len(lanes)) as pool:
            running = [pool.submit(self._run_lane, lane) for lane in lanes]
            try:
                return [result for lane in running for result in lane.result()]
            finally:
                self.stopping.set()

    def _run_lane(self, lane: Lane) -> list[Result]:
        results = []
        for name in lane:
            if self.stopping.is_set():
                break
            log = RESULTS / f"{name}.log"
            print(f"==> tier {name} started; its output is in {log.relative_to(ROOT)}", flush=True)
            with log.open("w", buffering=1) as file:
                console = Console(file, name in GIVES_WAY)
                results.append(run_named(name, console, on_kubeconfig=self.on_kubeconfig))
            printed = log.read_text(errors="replace")
            print(f"\n==> tier {name}\n{printed}", flush=True)
        return results


def print_summary(results: list[Result], seconds: float) -> None:
    """Print one line per tier, the rest of the time budget, and a last line in pytest's format.

    All durations are wall time in seconds.
    """
    print("\n" + f"{'tier':<12}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for result in results:
        print(
            f"{result.name:<12}{result.passed:>8}{result.failed:>8}{result.skipped:>9}"
            f"{result.seconds:>9.0f}{'' if result.ok else '   FAILED'}"
        )
    left = 1 - seconds / BUDGET_SECONDS
    print(
        f"{'total':<38}{seconds:>9.0f}, "
        + (
            f"{left:.0%} of the {BUDGET_SECONDS // 60} minutes are left"
            if left >= 0
            else f"{-left:.0%} more than the budget of {BUDGET_SECONDS // 60} minutes"
        )
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
    print(f" {', '.join(counts)} in {seconds:.2f}s ".center(80, "="), flush=True)


def main() -> int:
    """Run the named tiers, or all of them; return 1 if one failed, and 0 otherwise."""
    names = ["lint", *(tier.name for tier in TIERS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TIER", help=f"any of {', '.join(names)}")
    parser.add_argument(
        "--on-kubeconfig",
        action="store_true",
        help="run on the cluster of KUBECONFIG. The tests change it, so use a cluster for tests",
    )
    options = parser.parse_args()
    wanted = options.names or names
    if wanted == ["list"]:
        print(f"{'lint':<12}style, types, the layer contract, YAML")
        for tier in TIERS:
            print(f"{tier.name:<12}{tier.proves}")
        return 0
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"unknown tier {', '.join(unknown)}: choose from {', '.join(names)}")

    RESULTS.mkdir(exist_ok=True)
    started = time.monotonic()
    lanes = [tiers for lane in LANES if (tiers := tuple(name for name in lane if name in wanted))]
    if len(wanted) == 1:
        results = [run_named(wanted[0], Console(), on_kubeconfig=options.on_kubeconfig)]
    else:
        results = Beside(options.on_kubeconfig).run(lanes)
    print_summary(results, time.monotonic() - started)
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
