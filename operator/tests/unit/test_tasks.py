"""Tests the tasks of a process, none of which may end before the process."""

import asyncio
import logging
import os
import signal

import pytest

from llmservice_operator.tasks import Tasks
from shared_support.waiting import PATIENCE


async def _break() -> None:
    raise RuntimeError("a bug")


async def _go_on() -> None:
    await asyncio.Event().wait()


async def test_a_task_that_breaks_ends_the_process_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks()
    with caplog.at_level(logging.CRITICAL):
        tasks.start("watch-pods", _break())
        await asyncio.wait_for(tasks.stop.wait(), timeout=PATIENCE)
    assert tasks.failed
    assert caplog.messages == ["watch-pods broke; the process ends"]
    assert "a bug" in caplog.text


async def test_a_cancelled_task_is_no_failure() -> None:
    tasks = Tasks()
    first, second = tasks.start("first", _go_on()), tasks.start("second", _go_on())
    await tasks.cancel(first)
    assert (first.done(), second.done()) == (True, False)
    await tasks.cancel_all()
    assert second.done()
    assert not tasks.failed
    assert not tasks.stop.is_set()


async def test_sigterm_asks_the_process_to_stop() -> None:
    tasks = Tasks()
    tasks.heed_signals()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(tasks.stop.wait(), timeout=PATIENCE)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert not tasks.failed
