import asyncio

import pytest

from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.watch import EngineWatch, Loss
from server_support.in_process import Client, make_management
from shared_support.waiting import PATIENCE


class Engine:
    def __init__(self) -> None:
        self.died = False
        self.stalled = 0.0
        self.lifecycle = Lifecycle()
        self.lifecycle.enter(Phase.READY)
        self.watch = EngineWatch(
            self.lifecycle, lambda: self.died, lambda: self.stalled, hang_seconds=2
        )

    async def probes(self) -> tuple[int, int]:
        client = Client(make_management(self.lifecycle))
        return (await client.get("/livez")).status, (await client.get("/readyz")).status


async def test_a_death_is_noticed_within_a_second() -> None:
    engine = Engine()
    watching = asyncio.ensure_future(engine.watch.run())
    await asyncio.wait((watching,), timeout=0.02)
    assert not watching.done()

    engine.died = True

    await asyncio.wait_for(engine.watch.lost.wait(), timeout=1)
    assert engine.watch.loss is Loss.DIED
    await watching


async def test_a_hang_shows_in_the_probes_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    watching = asyncio.ensure_future(engine.watch.run())
    engine.stalled = 1.9
    await asyncio.wait((watching,), timeout=0.02)
    assert await engine.probes() == (200, 200)

    engine.stalled = 2.1
    await asyncio.wait((watching,), timeout=0.2)
    assert await engine.probes() == (503, 503)
    assert engine.lifecycle.report()["message"] == (
        "the engine makes no step although requests are waiting"
    )
    assert "no step for 2.1 seconds" in caplog.text

    engine.stalled = 0
    await asyncio.wait((watching,), timeout=0.2)
    assert await engine.probes() == (200, 200)
    assert not engine.watch.lost.is_set()
    watching.cancel()


async def test_nobody_waits_for_an_engine_that_hangs_in_a_drain() -> None:
    engine = Engine()
    engine.lifecycle.enter(Phase.DRAINING)
    engine.stalled = 3
    await asyncio.wait_for(engine.watch.run(), timeout=PATIENCE)
    assert engine.watch.loss is Loss.HANGS
