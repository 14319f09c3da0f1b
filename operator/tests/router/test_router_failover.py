"""Two Envoys that ask the same picker, which is killed and returns."""

from pathlib import Path

from router_support.conversations import conversations, saved_percent

POINTS = 3.0
"""Difference of two saved shares, in percentage points, that chance can explain."""


async def test_the_next_picker_takes_over_with_the_same_knowledge_and_gives_it_back(
    tmp_path: Path,
) -> None:
    async with conversations(tmp_path) as service:
        await service.serve(300)  # fills the caches
        before = saved_percent(await service.serve(150))
        begun = len(service.served)
        service.kill_picker()
        await service.serve_for(1.0)
        after = saved_percent(await service.serve(150))
        await service.picker_returns()
        back = saved_percent(await service.serve(150))
        assert service.failed == []
        assert [each for each in service.served[begun:] if not each.is_picked] == []
        assert before > 80
        assert after > before - POINTS
        assert back > before - POINTS
