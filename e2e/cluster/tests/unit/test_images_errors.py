"""Tests every error that a user can see while images are built and loaded."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from localkube import cli
from localkube.cluster import Cluster
from localkube.errors import CommandFailed, LocalkubeError
from localkube.images import builder, transfer
from localkube.images.recipes import DEBIAN


class Usage(NamedTuple):
    total: float
    used: float
    free: float


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of fake programs, which is first on PATH. The test also has its own cache folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/sbin:{os.environ['PATH']}")
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return folder


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_says_that_building_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(LocalkubeError, match=r"built and loaded as root\. Use: sudo"):
        builder.build(["cpu"])


def test_says_which_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    with pytest.raises(LocalkubeError, match="apt-get install -y buildah debootstrap"):
        builder.build(["cpu"])
    with pytest.raises(LocalkubeError, match="apt-get install -y buildah containerd"):
        transfer.load(Cluster(), "localhost:5000/llmservice/operator:x")


def test_says_how_much_disk_is_free_and_needed(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "buildah", "[ $7 != images ] || echo '[]'")
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: Usage(9e9, 8.5e9, 0.5e9))

    with pytest.raises(LocalkubeError, match=r"0\.5 GB free, and this build needs 1 GB"):
        builder.build(["operator"])


def test_shows_the_end_of_the_log_and_the_settings_for_an_index_out_of_reach(
    programs: Path,
) -> None:
    with builder.Store.open() as store:
        there = json.dumps([{"names": [DEBIAN.reference(), store.tools()], "created": 1}])
    program(
        programs,
        "buildah",
        f"case $7 in images) echo '{there}';; bud) echo error sending request; exit 1;; esac",
    )

    with pytest.raises(CommandFailed, match=r"(?s)error sending request.*set UV_DEFAULT_INDEX"):
        builder.build(["operator"])


def test_refuses_a_reference_that_nodes_cannot_pull(programs: Path) -> None:
    program(programs, "buildah", "exit 1")
    program(programs, "ctr", "exit 1")

    with pytest.raises(LocalkubeError, match="only references that begin with localhost:5000/"):
        transfer.load(Cluster(), "docker.io/library/debian:latest")


def test_says_how_to_build_an_image_that_is_not_there(
    programs: Path,
) -> None:
    program(programs, "buildah", "echo '[]'")
    program(programs, "ctr", "exit 0")
    cluster = Cluster("elsewhere")

    with pytest.raises(LocalkubeError, match=r"is not built\. Run: localkube images build all"):
        transfer.load(cluster, "localhost:5000/llmservice/operator:x", [cluster.node(1)])


def test_says_that_containerd_does_not_answer(programs: Path) -> None:
    program(programs, "buildah", "echo '[]'")
    program(programs, "ctr", "echo no such socket >&2; exit 1")
    cluster = Cluster("elsewhere")

    with pytest.raises(CommandFailed, match="containerd of node1 does not answer: no such socket"):
        transfer.load(cluster, "localhost:5000/llmservice/operator:x", [cluster.node(1)])


def test_a_node_forgets_the_builds_that_the_store_has_forgotten(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = (f"localhost:5000/llmservice/operator:{tag}" for tag in ("new", "old"))
    program(programs, "buildah", f"""echo '[{{"names": ["{new}"], "created": 1}}]'""")
    program(
        programs,
        "ctr",
        f"""echo "$@" >> {tmp_path}/asked
case "$*" in
*name==*) ;;
*name~=^localhost:5000/llmservice/) echo {old}; echo {new} ;;
esac""",
    )
    monkeypatch.setattr(Cluster, "exec", lambda *_, **__: subprocess.CompletedProcess([], 0))
    monkeypatch.setattr(Cluster, "inside", lambda _, command: command)
    cluster = Cluster("elsewhere")

    transfer.load(cluster, new, [cluster.node(1)])

    assert (tmp_path / "asked").read_text().splitlines()[-1].endswith(f"images remove {old}")


def test_load_image_names_the_cluster_that_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["load-image", "localhost:5000/x:1", "--name", "not-there"]) == 1

    assert "no cluster 'not-there'" in capsys.readouterr().err


def test_finds_uv_behind_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV", raising=False)

    binary = builder.uv_binary()

    assert binary.read_bytes()[:4] == b"\x7fELF"
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("uv ")
