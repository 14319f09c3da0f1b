"""Tests the settings of control groups, in ordinary folders that replace the kernel's."""

from pathlib import Path

import pytest

from localkube import cgroups


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path)
    return tmp_path


def test_containers_get_as_much_cpu_time_as_four_sessions(mount: Path) -> None:
    for controller in ("cpu", "freezer"):
        (mount / controller).mkdir()

    cgroups.create("localkube/demo", ["node1"])

    assert (mount / "cpu/localkube/cpu.shares").read_text() == "4096"
    assert (mount / "freezer/localkube/demo/node1").is_dir()


def test_each_level_of_the_unified_hierarchy_allows_every_controller(mount: Path) -> None:
    (mount / "cgroup.controllers").write_text("cpu memory\n")

    cgroups.create("localkube/demo", ["node1"])

    for level in (".", "localkube", "localkube/demo"):
        assert (mount / level / "cgroup.subtree_control").read_text() == "+cpu +memory"
