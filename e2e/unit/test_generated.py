"""Tests that a stale generated file is reported, and is written again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import generated
import tiers
from generated import FILES, stale, write

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_that_is_not_what_the_code_makes_is_stale(tmp_path: Path) -> None:
    (tmp_path / "fresh").write_text("1")
    (tmp_path / "old").write_text("1")

    found = stale({"fresh": lambda: "1", "old": lambda: "2", "absent": lambda: "3"}, tmp_path)

    assert found == {"old": "2", "absent": "3"}


def test_a_stale_file_is_written(tmp_path: Path) -> None:
    files = {"old": lambda: "2", "absent": lambda: "3"}
    (tmp_path / "old").write_text("1")

    write(files, tmp_path)

    assert stale(files, tmp_path) == {}


def test_a_command_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    def failing() -> str:
        raise subprocess.CalledProcessError(1, "llmservice-operator")

    (tmp_path / "file").write_text("1")

    with pytest.raises(subprocess.CalledProcessError):
        write({"file": failing}, tmp_path)

    assert (tmp_path / "file").read_text() == "1"


def test_lint_fails_with_the_name_of_the_file_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(generated, "FILES", {"docs/page.md": lambda: "text"})
    monkeypatch.setattr(sys, "argv", ["generated.py", "--check"])

    assert generated.main() == 1
    assert capsys.readouterr().out == "docs/page.md is stale: run `make generate`\n"


def test_only_the_named_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    monkeypatch.setattr(generated, "FILES", {"one": lambda: "1", "two": lambda: "2"})
    monkeypatch.setattr(sys, "argv", ["generated.py", "two"])

    assert generated.main() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["two"]


def test_a_file_that_is_not_generated_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generated, "FILES", {"one": lambda: "1"})
    monkeypatch.setattr(sys, "argv", ["generated.py", "two"])

    with pytest.raises(SystemExit):
        generated.main()
    assert "two is not generated: choose from one" in capsys.readouterr().err


def test_lint_checks_the_generated_files() -> None:
    assert ("python", "e2e/generated.py", "--check") in tiers.LINT


def test_every_file_that_says_it_is_generated_is_checked() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    says_so = re.compile(r"Generated .{0,40}by `make generate`; do not edit")

    found = {
        name
        for name in tracked
        if Path(name).suffix in (".yaml", ".md", ".tpl", ".py")
        and says_so.search((ROOT / name).read_text()[:200])
    }

    # JSON has no comments.
    assert found == {name for name in FILES if Path(name).suffix != ".json"}
