import asyncio
import gc
import json
import os
import signal
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from llmservice_server import serve
from llmservice_server.serve import Server
from llmservice_server.settings import ServerSettings
from server_support.engine import free_ports

PROBES = ("/livez", "/startupz", "/readyz")


class Kept:
    """An object in a reference cycle, which only a full collection frees."""

    def __init__(self) -> None:
        self.itself = self


class LoadedEngine:
    """Replacement for a loaded engine. It computes nothing."""

    has_died = False

    def __init__(self) -> None:
        self.frozen_when_warmed_up = -1

    async def build_app(
        self, with_administration: bool, requests_in_progress: Callable[[], int]
    ) -> FastAPI:
        return FastAPI()

    async def warm_up(self) -> None:
        self.frozen_when_warmed_up = gc.get_freeze_count()

    def shutdown(self) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[None]:
    """Make the garbage collector run only on request; reset it after the test."""
    gc.unfreeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
async def test_what_a_ready_server_keeps_is_not_looked_at_by_the_collector(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine, left_of_the_load = LoadedEngine(), []

    async def load(*_: Any) -> LoadedEngine:
        left_of_the_load.append(weakref.ref(Kept()))
        return engine

    server, settings = with_load(monkeypatch, tmp_path, load, pre_stop_seconds=0)
    running = asyncio.ensure_future(server.run())
    while (await status(settings.management_port, "/readyz")) != 200:
        assert not running.done()

    (garbage,) = left_of_the_load
    assert garbage() is None, "what the load left behind would be kept for good"
    assert engine.frozen_when_warmed_up == 0
    assert gc.get_freeze_count() > 10_000

    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


class SilentEngine(LoadedEngine):
    """An engine that never answers a completion."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def build_app(
        self, with_administration: bool, requests_in_progress: Callable[[], int]
    ) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/completions")
        async def complete() -> None:
            self.asked.set()
            await asyncio.Event().wait()

        return app

    def unseen(self) -> AbstractContextManager[None]:
        return nullcontext()


def with_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: LoadedEngine, seconds: float
) -> tuple[Server, ServerSettings]:
    async def load(*_: Any) -> LoadedEngine:
        return engine

    return with_load(monkeypatch, tmp_path, load, smoke_test_timeout_seconds=seconds)


def with_load(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    load: Callable[..., Awaitable[LoadedEngine]],
    **settings: Any,
) -> tuple[Server, ServerSettings]:
    """Return a server that loads its engine with `load`, and its settings."""
    monkeypatch.setattr(serve, "load_engine", load)
    monkeypatch.setattr(serve, "load_nvml", lambda: None)
    monkeypatch.setattr(serve, "find_gpus", lambda nvml: None)
    monkeypatch.setattr(serve, "REGISTRY", CollectorRegistry())
    (tmp_path / "termination-log").touch()
    api_port, management_port = free_ports()
    found = ServerSettings(
        api_port=api_port,
        management_port=management_port,
        termination_log=tmp_path / "termination-log",
        **settings,
    )
    return Server([], found), found


async def test_probes_answer_during_the_smoke_test_and_a_signal_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = SilentEngine()
    server, settings = with_engine(monkeypatch, tmp_path, engine, seconds=600)
    running = asyncio.ensure_future(server.run())
    await engine.asked.wait()
    probes = {path: await status(settings.management_port, path) for path in PROBES}
    assert probes == {"/livez": 200, "/startupz": 503, "/readyz": 503}

    os.kill(os.getpid(), signal.SIGTERM)

    assert await running == 0
    failure = json.loads(settings.termination_log.read_text())
    assert failure["reason"] == "StartupTimeout"
    assert "stopped while smoke testing" in failure["message"]


async def test_the_death_of_an_engine_during_the_smoke_test_is_no_failure_of_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = SilentEngine()
    engine.has_died = True
    server, settings = with_engine(monkeypatch, tmp_path, engine, seconds=0.5)
    assert await server.run() == 1
    failure = json.loads(settings.termination_log.read_text())
    assert failure["reason"] == "LoadFailed"
    assert "the engine died during the smoke test" in failure["message"]


async def test_what_an_engine_died_of_in_a_container_before_is_no_reason_for_this_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"llmservice-engine-error.{os.getpid()}"
    left.write_text(json.dumps([{"types": ["MemoryError"], "text": "long ago"}]))

    async def load(*_: Any) -> LoadedEngine:
        raise RuntimeError("only now")

    server, settings = with_load(monkeypatch, tmp_path, load)

    assert await server.run() == 1

    failure = json.loads(settings.termination_log.read_text())
    assert failure["reason"] == "LoadFailed"
    assert "only now" in failure["message"]


async def status(port: int, path: str) -> int:
    """Return the HTTP status of a path; 0 while the port is closed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        await asyncio.sleep(0)  # noqa: TID251 - the server starts in this event loop
        return 0
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])
