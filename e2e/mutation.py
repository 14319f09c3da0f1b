"""Tests the tests of the pure core: changes the code at random places and counts the changes that a
test notices.

A mutant is a copy of a function with one small change. The tests kill a mutant if one of them fails
with it; else it survives. The program draws a sample of all mutants, runs the tests that call their
functions, and prints the survivors and the share of killed mutants. `[tool.mutmut]` in
pyproject.toml names the modules and the tests.

mutmut changes functions and methods without decorators. It leaves out constants, and functions with
a decorator, such as properties. The tests do not see a change of code that runs only when a module
is imported, because the modules are imported before a mutant is chosen.
"""

import argparse
import contextlib
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from mutmut.__main__ import create_mutants
from mutmut.configuration import reset_config
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.utils.file_utils import (
    change_cwd,
    copy_src_dir,
    setup_source_paths,
    walk_mutatable_files,
)
from mutmut.utils.format_utils import mangled_name_from_mutant_name
from mutmut.workers.isolation import ForkServerRunner

ROOT = Path(__file__).resolve().parent.parent

FAILURES: Set[int] = {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR, -signal.SIGXCPU}
"""Exit codes of the tests of a killed mutant. The time limit sends the signal."""

OTHERS: Mapping[int, str] = {
    pytest.ExitCode.OK: "survived",
    pytest.ExitCode.NO_TESTS_COLLECTED: "no test calls it",
}
"""Exit codes of the tests of a mutant that counts as not killed."""

MEMORY_BYTES = 8 * 2**30
"""Limit of the address space of each process, for mutants that fill a list without end."""


class SelectingRunner(PytestRunner):  # type: ignore[misc]
    """Runs given tests of the selection, the fastest first.

    pytest looks up each test that it gets as an argument in all tests of its file. Removing the
    other tests after the collection takes less time.
    """

    def run_tests(self, *, mutant_name: str | None, tests: Collection[str]) -> int:
        selected = set(tests)

        class Selection:
            def pytest_collection_modifyitems(self, items: list[Any]) -> None:
                duration = state().duration_by_test
                chosen = [item for item in items if item.nodeid in selected]
                items[:] = sorted(chosen, key=lambda item: duration[item.nodeid])

        files = sorted({test.partition("::")[0] for test in selected})
        with change_cwd("mutants"):
            return int(self.execute_pytest(["-x", "-q", *files], plugins=[Selection()]))


@contextlib.contextmanager
def copy_of_the_repository() -> Iterator[None]:
    """Work in a temporary folder, with the code in `src` and everything else in `mutants`.

    mutmut derives the names of modules from paths below `src`, and runs the tests in `mutants`.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        for name in filter(None, listed.split("\0")):
            target = Path(folder, "mutants", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, target)
        shutil.copy(ROOT / "pyproject.toml", folder)
        shutil.copytree(
            ROOT / "operator/src",
            Path(folder, "src"),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        with contextlib.chdir(folder):
            reset_config()
            yield


def generate(workers: int) -> dict[str, Path]:
    """Write the mutants of all files. Return the name of each mutant with its file."""
    copy_src_dir()
    setup_source_paths()
    with contextlib.redirect_stdout(None):
        create_mutants(workers)
    found: dict[str, Path] = {}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        found |= dict.fromkeys(data.exit_code_by_key, path)
    return found


def exit_codes(mutants: Sequence[str], workers: int) -> dict[str, int]:
    """Run the tests that call the function of each mutant. Return the exit codes of pytest.

    The program ends if a test fails without a mutant.
    """
    runner = ForkServerRunner(workers, SelectingRunner, {})
    set_mutant_under_test("stats")
    if runner.collect_stats([]):
        raise SystemExit("a test fails without a mutant: mend the test, then start again")
    set_mutant_under_test("")
    codes: dict[str, int] = {}

    def take_a_result() -> None:
        result = runner.wait_for_result()
        codes[result.mutant_name] = result.exit_code
        print(f"{len(codes)}/{len(mutants)}", end="\r", file=sys.stderr, flush=True)

    runner.startup()
    try:
        for mutant in mutants:
            function = mangled_name_from_mutant_name(mutant)
            tests = state().tests_by_mangled_function_name.get(function)
            if not tests:
                codes[mutant] = pytest.ExitCode.NO_TESTS_COLLECTED
                continue
            while not runner.has_capacity():
                take_a_result()
            estimate = sum(state().duration_by_test[test] for test in tests)
            # The wall-clock limit is half of this limit. The load of the machine may change.
            limit = math.ceil(10 * estimate + 120)
            runner.submit(mutant, list(tests), limit, estimate)
        runner.signal_work_complete()
        while runner.pending_count():
            take_a_result()
    finally:
        runner.shutdown()
    return codes


def interval(successes: int, trials: int, confidence: float = 0.9) -> tuple[float, float]:
    """Return the Wilson interval of a proportion."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = share + z**2 / (2 * trials)
    width = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return (middle - width) / (1 + z**2 / trials), (middle + width) / (1 + z**2 / trials)


def report(codes: Mapping[str, int], files: Mapping[str, Path]) -> int:
    """Print the mutants that were not killed, and the score. Return 1 if a mutant has no result."""
    for mutant, code in sorted(codes.items()):
        if code not in FAILURES:
            print(f"\n{mutant}: {OTHERS.get(code, f'no result, exit code {code}')}")
            print(get_diff_for_mutant(mutant, path=files[mutant]))
    killed = sum(code in FAILURES for code in codes.values())
    low, high = interval(killed, len(codes))
    print(
        f"\nscore {killed / len(codes):.1%} ({killed} killed / {len(codes)} tested,"
        f" 90 % interval {low:.1%} to {high:.1%})"
    )
    return 0 if set(codes.values()) <= FAILURES | OTHERS.keys() else 1


def main() -> int:
    """Test a sample of the mutants, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample")
    parser.add_argument("--count", type=int, default=200, help="size of the sample")
    parser.add_argument("mutants", nargs="*", help="names of mutants to test instead of a sample")
    options = parser.parse_args()
    workers = os.cpu_count() or 1
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    with copy_of_the_repository():
        files = generate(workers)
        if unknown := set(options.mutants) - set(files):
            parser.error(f"there is no mutant {min(unknown)}: copy a name from an earlier run")
        names = options.mutants or random.Random(options.seed).sample(
            sorted(files), min(options.count, len(files))
        )
        print(f"{len(names)} of {len(files)} mutants, seed {options.seed}", flush=True)
        return report(exit_codes(names, workers), files)


if __name__ == "__main__":
    sys.exit(main())
