"""Tests that earlier versions are read from the history, and that the changelog announces their
effects.
"""

import subprocess
from pathlib import Path

import pytest

import earlier_versions
from earlier_versions import KNOWN, ROOT, NoSuchVersion


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Shallow clone of a repository with two commits. Its cache is empty."""
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path / "cache"))
    origin = tmp_path / "origin"
    git(tmp_path, "init", "--quiet", str(origin))
    for text in ("first", "second"):
        (origin / "file").write_text(text)
        git(origin, "add", "file")
        git(origin, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", f"-m{text}")
    git(origin, "tag", "first", "HEAD~1")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{origin}", "clone")
    return tmp_path / "clone"


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_version_has_the_files_of_its_commit(clone: Path) -> None:
    git(clone, "fetch", "--quiet", "--unshallow", "--tags")

    first = earlier_versions.extract("first", clone)

    assert (first / "file").read_text() == "first"
    assert earlier_versions.extract(git(clone, "rev-parse", "first"), clone) == first
    assert (earlier_versions.extract("HEAD", clone) / "file").read_text() == "second"


def test_a_shallow_clone_is_told_how_to_get_the_commit(clone: Path) -> None:
    missing = git(clone.parent / "origin", "rev-parse", "first")

    with pytest.raises(NoSuchVersion, match=f"{missing} is not in .* `git fetch --unshallow`"):
        earlier_versions.extract(missing, clone)


def test_the_changelog_announces_each_upgrade_that_replaces_replicas() -> None:
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text().split())

    announced = [known.announced for known in KNOWN.values() if known.announced]

    assert announced
    assert [text for text in announced if text not in changelog] == []
