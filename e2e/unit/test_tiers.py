"""Tests that a tier fails if it did not run or skipped a test."""

import re
from pathlib import Path

import pytest

import tiers
from tiers import LANES, TIERS, Beside, Result, print_summary, read_report

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<testsuites><testsuite name="pytest" tests="{tests}" failures="{failures}"
errors="{errors}" skipped="{skipped}"/></testsuites>"""


def report(
    tmp_path: Path, tests: int, failures: int = 0, errors: int = 0, skipped: int = 0
) -> Path:
    path = tmp_path / "report.xml"
    path.write_text(REPORT.format(tests=tests, failures=failures, errors=errors, skipped=skipped))
    return path


def test_counts_what_pytest_counted(tmp_path: Path) -> None:
    result = read_report("unit", report(tmp_path, 10, failures=1, errors=2, skipped=3), 1.5)

    assert result == Result("unit", passed=4, failed=3, skipped=3, seconds=1.5)


def test_a_tier_that_passed_is_ok(tmp_path: Path) -> None:
    assert read_report("unit", report(tmp_path, 10), 1).ok


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param({"tests": 3, "failures": 1}, id="a failure"),
        pytest.param({"tests": 3, "skipped": 1}, id="a skipped test"),
        pytest.param({"tests": 0}, id="no test at all"),
    ],
)
def test_a_tier_that_proved_less_than_it_says_has_failed(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    assert not read_report("unit", report(tmp_path, **counts), 1).ok


def test_a_tier_that_never_got_to_its_tests_has_failed(tmp_path: Path) -> None:
    assert not read_report("api", tmp_path / "absent.xml", 1).ok


def test_the_summary_names_every_tier_and_closes_in_pytests_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_summary(
        [Result("lint", 6, 0, 0, 2), Result("unit", 10, 0, 0, 3), Result("api", 4, 1, 0, 5)], 8
    )

    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("unit") and "10" in line for line in lines)
    assert any(line.startswith("api") and line.endswith("FAILED") for line in lines)
    assert lines[-1].strip("= ") == "1 failed, 20 passed in 8.00s"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (1000, "1000, 33% of the 25 minutes are left"),
        (1650, "1650, 10% more than the budget of 25 minutes"),
    ],
)
def test_the_summary_says_how_much_of_the_budget_is_left(
    capsys: pytest.CaptureFixture[str], seconds: float, said: str
) -> None:
    print_summary([Result("unit", 10, 0, 0, 3)], seconds)

    (total,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("total"))
    assert total.removeprefix("total").strip() == said


def test_every_test_file_belongs_to_a_tier_or_has_a_make_target_of_its_own() -> None:
    named = re.findall(r"pytest (?:-\S+ )*([^\s),]+)", (ROOT / "Makefile").read_text())
    # If a variable is in the name of a file, the target has a part for each file of the folder.
    of_their_own = [
        path.partition("$")[0].rpartition("/")[0] if "$" in path else path for path in named
    ]
    elsewhere = [*of_their_own, *(path for tier in TIERS for path in tier.paths)]
    assert [path for tier in TIERS for path in tier.leaves_out if path not in elsewhere] == []
    homes = [ROOT / path for tier in TIERS for path in tier.paths]
    homes += [ROOT / path for path in of_their_own]
    folders = ("operator", "server_image", "charts", "e2e", "bench", "testing")
    files = [file for folder in folders for file in (ROOT / folder).rglob("test_*.py")]

    strays = [file for file in files if not any(home in file.parents for home in homes)]

    assert strays == []


def test_every_tier_runs_in_one_lane() -> None:
    assert sorted(name for lane in LANES for name in lane) == sorted(
        ["lint", *(tier.name for tier in TIERS)]
    )


def test_lanes_run_beside_each_other_and_show_a_tier_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each tier waits for the other tier's file. If the tiers ran in sequence, the first one would
    # wait in vain, and its output would say so.
    def waiting(own: str, other: str) -> tiers.Tier:
        script = f"touch {own}; for i in $(seq 500); do [ -e {other} ] && exit; sleep 0.1; done"
        prepare = ("sh", "-c", f"cd {tmp_path}; echo {own} begins; {script}; echo no {other}")
        return tiers.Tier(own, "waits", (f"{tmp_path}/no-tests",), prepare=(prepare,))

    monkeypatch.setattr(tiers, "ROOT", tmp_path)
    monkeypatch.setattr(tiers, "RESULTS", tmp_path)
    monkeypatch.setattr(tiers, "TIERS", (waiting("one", "two"), waiting("two", "one")))

    results = Beside(on_kubeconfig=False).run((("one",), ("two",)))

    printed = capsys.readouterr().out
    assert [(result.name, result.ok) for result in results] == [("one", False), ("two", False)]
    assert "==> tier one\none begins\n" in printed
    assert "==> tier two\ntwo begins\n" in printed
    assert "no two" not in printed
    assert "no one" not in printed
