"""Tests the Kubernetes version of a cluster, and which changes cause a new build of a program."""

from dataclasses import replace
from pathlib import Path

import pytest

from localkube import binaries, paths
from localkube.binaries import KUBERNETES_VARIABLE, Module
from localkube.errors import LocalkubeError


@pytest.fixture(autouse=True)
def default_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KUBERNETES_VARIABLE, raising=False)
    monkeypatch.setattr(binaries, "toolchain", lambda: "go version go1.26.8 linux/amd64")


def kubernetes() -> Module:
    (found,) = (module for module in binaries.modules() if module.name == "kubernetes")
    return found


def test_a_cluster_has_the_newest_version_unless_another_one_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = list(binaries.kubernetes_versions())
    assert versions == ["1.37", "1.34"]
    assert "gitVersion=v1.37." in kubernetes().flags

    monkeypatch.setenv(KUBERNETES_VARIABLE, "1.34")

    assert "gitVersion=v1.34." in kubernetes().flags
    assert kubernetes().modfile == "go-1.34.mod"


def test_a_version_that_no_module_locks_is_refused_with_the_choices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KUBERNETES_VARIABLE, "1.12")

    with pytest.raises(LocalkubeError, match=r"is 1\.12: choose one of 1\.37, 1\.34, or unset it"):
        binaries.modules()


def test_each_version_has_a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    newest = binaries.folder(kubernetes())
    monkeypatch.setenv(KUBERNETES_VARIABLE, "1.34")
    assert binaries.folder(kubernetes()) != newest


def test_a_change_of_one_version_builds_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "go_sources", lambda: tmp_path)
    source = tmp_path / "thing"
    source.mkdir()
    for name in ("main.go", "go.mod", "go.sum", "go-1.mod", "go-1.sum"):
        (source / name).write_text(name)
    newest, older = Module("thing"), replace(Module("thing"), modfile="go-1.mod")
    before = binaries.folder(newest), binaries.folder(older)

    (source / "go-1.sum").write_text("another dependency")
    assert binaries.folder(newest) == before[0]
    assert binaries.folder(older) != before[1]

    (source / "main.go").write_text("another program")
    assert binaries.folder(newest) != before[0]
