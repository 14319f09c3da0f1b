"""Tests that probes respond while the API's event loop is blocked, and fail if the loop hangs."""

import asyncio
import http.client
import json

import pytest
from prometheus_client import CollectorRegistry

from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.listener import Listener, bind
from llmservice_server.management import create_management_app
from llmservice_server.management_thread import ManagementThread, beat, run_in
from server_support.engine import free_ports
from shared_support.waiting import eventually_in_loop

PATHS = ("/livez", "/startupz", "/readyz", "/metrics")


def ask(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


async def test_probes_answer_while_the_api_is_blocked() -> None:
    now = 0.0
    lifecycle = Lifecycle(lambda: now)
    lifecycle.enter(Phase.READY)
    port, _ = free_ports()
    usage = EngineUsage(Objectives())
    app = create_management_app(lifecycle, CollectorRegistry(), usage, asyncio.get_running_loop())
    management = ManagementThread(lambda: Listener(app, bind(port)))
    management.start()
    try:
        # These calls block the event loop of this test, which is also the API's event loop.
        assert [ask(port, path)[0] for path in PATHS] == [200] * len(PATHS)
        status, body = ask(port, "/autoscale")
        assert (status, "busy" in body.decode()) == (503, True)
        assert (await asyncio.to_thread(ask, port, "/autoscale"))[0] == 200

        lifecycle.api_hang_seconds = 120
        lifecycle.beat()
        assert ask(port, "/livez")[0] == 200
        now = 121
        status, body = ask(port, "/livez")
        assert status == 503
        assert "the API has answered nothing" in json.loads(body)["message"]
        assert ask(port, "/readyz")[0] == 503

        beating = asyncio.ensure_future(beat(lifecycle))
        await eventually_in_loop(lambda: lifecycle.is_alive)
        assert (await asyncio.to_thread(ask, port, "/livez"))[0] == 200
        beating.cancel()
    finally:
        await management.stop()


async def test_a_stopped_listener_leaves_no_port_open() -> None:
    lifecycle = Lifecycle()
    port, _ = free_ports()
    usage = EngineUsage(Objectives())
    app = create_management_app(lifecycle, CollectorRegistry(), usage, asyncio.get_running_loop())
    management = ManagementThread(lambda: Listener(app, bind(port)))
    management.start()
    await asyncio.to_thread(ask, port, "/livez")
    await management.stop()
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/livez")


async def test_what_another_loop_raises_is_raised_here() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await run_in(asyncio.get_running_loop(), fail, 1)


def test_the_heartbeat_of_the_api_decides_after_the_limit_only() -> None:
    now = 0.0
    lifecycle = Lifecycle(lambda: now)
    lifecycle.enter(Phase.READY)
    lifecycle.api_hang_seconds = 120
    lifecycle.beat()
    now = 119
    assert (lifecycle.is_alive, lifecycle.is_ready) == (True, True)
    now = 121
    assert (lifecycle.is_alive, lifecycle.is_ready) == (False, False)
    lifecycle.beat()
    assert (lifecycle.is_alive, lifecycle.is_ready) == (True, True)
