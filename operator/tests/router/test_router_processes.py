"""Child processes, which are restarted when they end."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmservice_operator.router import processes as module
from llmservice_operator.router.processes import ChildProcess, program
from shared_support.waiting import eventually_in_loop

ECHO = "import sys\nfor line in sys.stdin:\n with open(sys.argv[1], 'a') as f: f.write(line)"
SLOW = """import os, sys, time
while True:
    os.read(0, 4000)
    with open(sys.argv[1], 'a') as f: f.write('.')
    time.sleep(0.1)
"""
DEAF = (
    "import signal, sys; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w'); signal.pause()"
)


@asynccontextmanager
async def running(process: ChildProcess) -> AsyncIterator[ChildProcess]:
    task = asyncio.create_task(process.run())
    try:
        await eventually_in_loop(lambda: process.is_running)
        yield process
    finally:
        await process.end()
        await asyncio.wait([task], timeout=5)
        assert task.done()


async def test_a_process_gets_its_first_line_after_each_start(tmp_path: Path) -> None:
    told = tmp_path / "told"
    process = ChildProcess(
        "echo", program(sys.executable, "-c", ECHO, str(told)), first_line=lambda: b"first\n"
    )
    async with running(process):
        process.write(b"second\n")
        await eventually_in_loop(lambda: told.read_text().endswith("second\n"))
    assert told.read_text() == "first\nsecond\n"


async def test_the_pauses_between_starts_grow_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.005)
    process = ChildProcess("broken", program(sys.executable, "-c", "import sys; sys.exit(3)"))
    async with running(process):
        await eventually_in_loop(lambda: process.restarts >= 5)
    told = [record.args for record in caplog.records if record.name == module.__name__]
    assert told[:5] == [("broken", 3, pause) for pause in (0.001, 0.002, 0.004, 0.005, 0.005)]


def deaf(folder: Path) -> tuple[ChildProcess, Path]:
    """Return a process that ignores its input and SIGTERM. The second result is the path of the
    file that the process creates when it starts.
    """
    started = folder / "started"
    return ChildProcess("deaf", program(sys.executable, "-c", DEAF, str(started))), started


async def test_a_process_that_reads_nothing_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_READ_SECONDS", 0.1)
    monkeypatch.setattr(module, "END_SECONDS", 0.2)
    process, started = deaf(tmp_path)
    async with running(process):
        await eventually_in_loop(started.exists)
        for line in (b"x" * 100_000 + b"\n", b"short\n"):
            await eventually_in_loop(until_killed(process, line))


async def test_a_process_that_stops_reading_is_killed_long_before_its_input_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    process = ChildProcess("echo", program(sys.executable, "-c", ECHO, str(told)))
    async with running(process):
        process.write(b"first\n")
        await eventually_in_loop(told.exists)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        monkeypatch.setattr(module, "UNREAD_SECONDS", 0.0)
        # The first is unread, the second begins the time, and the third finds it over.
        for _ in range(3):
            process.write(b"short\n")
        await eventually_in_loop(lambda: process.restarts == 1)
        monkeypatch.undo()
        told.unlink()
        process.write(b"again\n")
        await eventually_in_loop(lambda: told.exists() and "again\n" in told.read_text())


async def test_a_process_that_reads_slowly_is_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNREAD_SECONDS", 1.0)
    told = tmp_path / "told"
    process = ChildProcess("slow", program(sys.executable, "-u", "-c", SLOW, str(told)))
    lines = 40
    async with running(process):

        def has_read_all() -> bool:
            # More input than it reads, so that there is always some that is unread.
            process.write(b"x" * 8000 + b"\n")
            return told.exists() and told.read_text().count(".") >= lines

        await eventually_in_loop(has_read_all)
        assert process.restarts == 0


def until_killed(process: ChildProcess, line: bytes) -> Callable[[], bool]:
    """Return a check that writes a line, and succeeds once the process has started again."""
    before = process.restarts

    def check() -> bool:
        process.write(line)
        return process.restarts > before

    return check


async def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_SECONDS", 0.2)
    process, started = deaf(tmp_path)
    async with running(process):
        await eventually_in_loop(started.exists)
    assert process.status == -signal.SIGKILL
    assert process.restarts == 0
