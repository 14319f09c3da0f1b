"""Tests the messages about the life cycle of a cluster, without starting one."""

from pathlib import Path

import pytest

from localkube import cgroups, cli, lifecycle, paths, waiting
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Cluster that does not run, with its state and cache in the test's own folder."""
    monkeypatch.setattr(paths, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path / "cache"))
    cluster = Cluster("demo")
    cluster.logs.mkdir(parents=True)
    return cluster


@pytest.mark.parametrize(
    ("process", "why"),
    [
        pytest.param(None, "etcd has ended", id="the daemon died"),
        pytest.param(7, "not within 0 s", id="the daemon is too slow"),
    ],
)
def test_a_wait_that_fails_says_why_and_shows_the_end_of_the_log(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, process: int | None, why: str
) -> None:
    monkeypatch.setattr(Cluster, "daemons", lambda _self: {"etcd": process})
    (cluster.logs / "etcd.log").write_text("first\n" * 20 + "disk is on fire\n")

    with pytest.raises(LocalkubeError) as raised:
        waiting.until(lambda: False, cluster=cluster, daemon="etcd", what="No answer", seconds=0)

    assert str(raised.value).startswith(f"No answer: {why}.")
    assert str(raised.value).endswith("disk is on fire")
    assert str(cluster.logs / "etcd.log") in str(raised.value)


def test_a_wait_ends_once_it_is_true(cluster: Cluster) -> None:
    waiting.until(lambda: True, cluster=cluster, daemon="etcd", what="No answer", seconds=0)


def test_a_cluster_that_up_did_not_finish_is_not_healthy(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "daemons", lambda _self: {"etcd": 7})
    lifecycle._write_record(cluster, 1, True, complete=False)
    assert not lifecycle.healthy(cluster)

    lifecycle._write_record(cluster, 1, True, complete=True)
    assert lifecycle.healthy(cluster)


def test_status_without_a_cluster_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "STATE_ROOT", tmp_path / "none")

    assert cli.main(["status"]) == 1
    assert "localkube up" in capsys.readouterr().out


@pytest.mark.parametrize("cache_too", [False, True])
def test_clean_keeps_the_cache_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_too: bool
) -> None:
    monkeypatch.setattr(paths, "STATE_ROOT", tmp_path / "state")
    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "state").mkdir()
    (tmp_path / "cache" / "localkube").mkdir(parents=True)

    assert cli.main(["clean", "--cache"] if cache_too else ["clean"]) == 0

    assert not (tmp_path / "state").exists()
    assert (tmp_path / "cache").exists() is not cache_too


def test_a_pid_file_whose_writer_was_killed_is_that_of_an_ended_daemon(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "daemons", lambda _: {7})
    cluster.pids.mkdir(parents=True)
    (cluster.pids / "etcd.pid").write_text("7\n")
    (cluster.pids / "kubelet.pid").touch()

    assert cluster.daemons() == {"etcd": 7, "kubelet": None}
    cluster.stop_daemon("kubelet")
    assert cluster.daemons() == {"etcd": 7}
