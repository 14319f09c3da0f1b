"""Tests that one process at a time fills a shared cache, and that another replaces a killed one."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_server.shared_cache import FillLock
from localkube.hub.settings import HubSettings, RepositorySettings
from localkube_support.hub import running_hub, write_repository
from server_support.filling import PATIENCE_SECONDS, REPOSITORY, SOURCE, working
from shared_support.waiting import PATIENCE, eventually

WEIGHTS = "model.safetensors"
WEIGHT_BYTES = 30_000_000
BYTES_PER_SECOND = 15_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    files = {WEIGHTS: os.urandom(1) * WEIGHT_BYTES, "config.json": b"{}", "tokenizer.json": b"[]"}
    model = write_repository(tmp_path / "model", files)
    repository = RepositorySettings(branches={"main": model}, bytes_per_second=BYTES_PER_SECOND)
    with running_hub(HubSettings(port=0, repositories={REPOSITORY: repository}), tmp_path) as url:
        yield url


def fetches(tmp_path: Path, file: str) -> int:
    """Return the number of complete downloads of a file, as the hub counted them."""
    log = (tmp_path / "hub.log").read_text().splitlines()
    return sum('"GET /' in line and f"/{file} " in line for line in log)


def weights(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache/hub").rglob(WEIGHTS) if path.exists()]


def test_of_several_servers_one_fetches_and_compiles_and_the_others_wait(
    tmp_path: Path, hub: str
) -> None:
    with working(tmp_path, hub, 3) as workers:
        assert all(worker.succeeded() for worker in workers)
        for file in (WEIGHTS, "config.json", "tokenizer.json"):
            assert fetches(tmp_path, file) == 1, file
        (stored,) = weights(tmp_path)
        assert stored.read_bytes() == (tmp_path / "model" / WEIGHTS).read_bytes()
        phases = [{each.get("phase") for each in worker.said()} for worker in workers]
        assert sum("waiting_for_cache" in each for each in phases) == 2
        for worker in workers:
            waits = [each for each in worker.said() if each.get("phase") == "waiting_for_cache"]
            assert all("fills the shared cache" in each["message"] for each in waits)
            progress = [each["download"]["bytesDone"] for each in waits if "download" in each]
            assert progress == sorted(progress)
    (marker,) = (tmp_path / "cache/compile/qwen").glob("compiled-*")
    assert marker.exists()
    with working(tmp_path, hub, 1) as (late,):
        assert late.succeeded()
        # The cache was already full, so this server needed no turn and did not wait.
        assert "waiting_for_cache" not in {each.get("phase") for each in late.said()}
        assert fetches(tmp_path, WEIGHTS) == 1


def test_a_writer_that_was_killed_is_replaced_by_exactly_one(tmp_path: Path, hub: str) -> None:
    with working(tmp_path, hub, 3) as workers:
        (writer,) = eventually(
            lambda: [each for each in workers if each.is_fetching()], PATIENCE_SECONDS
        )
        writer.process.kill()
        survivors = [each for each in workers if each is not writer]
        assert all(worker.succeeded() for worker in survivors)
        assert fetches(tmp_path, WEIGHTS) == 1
        (stored,) = weights(tmp_path)
        assert stored.read_bytes() == (tmp_path / "model" / WEIGHTS).read_bytes()


@pytest.mark.causes("CacheLost")
def test_a_writer_that_stood_still_gives_up_when_another_has_taken_over(
    tmp_path: Path, hub: str
) -> None:
    with working(tmp_path, hub, 2) as workers:
        (writer,) = eventually(
            lambda: [each for each in workers if each.is_fetching()], PATIENCE_SECONDS
        )
        writer.process.send_signal(signal.SIGSTOP)
        (other,) = (each for each in workers if each is not writer)
        eventually(other.is_fetching, PATIENCE_SECONDS)
        writer.process.send_signal(signal.SIGCONT)
        assert writer.process.wait(PATIENCE_SECONDS) == 1
        assert writer.said()[-1] == {"failed": "CacheLost"}
        assert other.succeeded()


_CONTENDER = """
import os, sys, time
from pathlib import Path
from llmservice_server.shared_cache import FillLock
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
lock = FillLock(Path(sys.argv[1]), takeover_seconds=2)
turns = 0
while turns < int(sys.argv[3]):
    if (writer := lock.try_acquire()) is None:
        time.sleep(0.001)
        continue
    with writer:
        os.write(log, f"begin {os.getpid()}\\n".encode())
        time.sleep(0.002)
        os.write(log, f"end {os.getpid()}\\n".encode())
    turns += 1
"""


def test_turns_never_overlap_while_servers_race_and_are_killed(tmp_path: Path) -> None:
    log, chance = tmp_path / "turns", random.Random(4)

    def contender(turns: int) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", _CONTENDER, tmp_path / "locks", log, str(turns)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        return subprocess.Popen([*map(str, arguments)], env=environment)

    lasting = [contender(40) for _ in range(3)]
    killed: set[int] = set()
    for _ in range(3):
        victim, turns = contender(10_000), chance.randint(1, 20)
        mine = f"begin {victim.pid}\n"
        eventually(lambda: log.exists() and log.read_text().count(mine) >= turns, PATIENCE_SECONDS)  # noqa: B023
        victim.kill()
        victim.wait()
        killed.add(victim.pid)
    assert [each.wait(PATIENCE_SECONDS) for each in lasting] == [0, 0, 0]

    inside: int | None = None
    begun = 0
    for line in log.read_text().splitlines():
        word, pid = line.split()
        if word == "begin":
            assert inside is None or inside in killed, "two had the turn at once"
            inside, begun = int(pid), begun + 1
        else:
            assert inside == int(pid)
            inside = None
    assert begun >= 120


def test_a_server_that_looked_away_cannot_take_a_turn_that_has_been_had(tmp_path: Path) -> None:
    now = [0.0]
    slow, quick = (FillLock(tmp_path, 60, lambda: now[0]) for _ in range(2))
    first = quick.try_acquire()
    assert first is not None
    assert slow.try_acquire() is None
    with first:
        pass
    with_second = quick.try_acquire()
    assert with_second is not None

    # A server that has read the folder before the second turn began would make these calls.
    assert slow._take(1) is None
    assert slow._take(0) is None
    assert [path.name for path in tmp_path.iterdir()] == ["0000000001.held"]
    with with_second:
        now[0] = 59
        assert slow.try_acquire() is None


def test_a_writer_whose_file_another_server_has_removed_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A network file system reports a removed file with this error. On a local file system, an open
    # file stays usable.
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    writer = FillLock(tmp_path, 0.06).try_acquire()
    assert writer is not None
    lost = threading.Event()
    writer.on_loss = lost.set
    monkeypatch.setattr(os, "utime", stale)
    with writer:
        assert lost.wait(PATIENCE)


def test_a_sign_of_life_that_fails_for_another_reason_hides_no_takeover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = FillLock(tmp_path, 0.06).try_acquire()
    assert writer is not None
    lost = threading.Event()
    writer.on_loss = lost.set
    monkeypatch.setattr(os, "utime", away)
    with writer:
        assert not lost.wait(0.2)
        (tmp_path / f"{1:010}.held").touch()
        assert lost.wait(PATIENCE)


def test_locks_of_a_writer_that_was_killed_stop_nobody(tmp_path: Path, hub: str) -> None:
    # On a file system without flock, a lock is held as long as its file exists, and the hub library
    # of a killed server leaves such files.
    locks = tmp_path / "cache/hub/.locks" / f"models--{REPOSITORY.replace('/', '--')}"
    other = tmp_path / "cache/hub/.locks/models--another/a.lock"
    for lock in (locks / "left.lock", other):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with working(tmp_path, hub, 1) as (worker,):
        assert worker.succeeded()
    assert not (locks / "left.lock").exists()
    assert other.exists()
