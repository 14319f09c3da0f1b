"""Tests how the supervisor of a router pod learns that the picker holds a request."""

import asyncio
from pathlib import Path

from llmservice_operator.router.picker_status import HELD_SOCKET, serve_held, wait_until_held
from shared_support.waiting import eventually_in_loop


async def test_the_supervisor_learns_of_a_held_request_also_after_the_picker_has_ended(
    tmp_path: Path,
) -> None:
    waiting = asyncio.ensure_future(wait_until_held(tmp_path))
    ended = await serve_held(asyncio.Event().wait, tmp_path)
    await eventually_in_loop(lambda: (tmp_path / HELD_SOCKET).exists())
    ended.close()
    (tmp_path / HELD_SOCKET).unlink(missing_ok=True)
    held = asyncio.Event()
    server = await serve_held(held.wait, tmp_path)
    try:
        assert not waiting.done()
        held.set()
        async with asyncio.timeout(30):
            await waiting
    finally:
        server.close()
