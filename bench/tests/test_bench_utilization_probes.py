"""Tests that a level measures the pace of the machine with probes before and after its traffic."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from llmservice_operator.scaling.conditions import ServiceLevelObjective
from llmservice_operator.scaling.signals import StepSums
from operator_support.metrics import Engine
from serving.servers import Server
from utilization import traffic
from utilization.mixes import Mix

OTHER_STEP_SECONDS = 1.0


@contextmanager
def an_engine(paces: list[float]) -> Iterator[Server]:
    """Serve an engine that is idle whenever it is asked. Each probe takes the next of `paces` in
    seconds per step, and every other request OTHER_STEP_SECONDS.
    """
    idle = Engine().autoscale() | {"running": 0, "waiting": 0}
    moments = [0.0] * len(StepSums().moments)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                counters = idle["counters"] | {"steps": {"moments": moments}}
                self._answer(json.dumps(idle | {"counters": counters}))

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            tokens = asked["max_tokens"]
            with lock:
                is_probe = tokens == traffic.PROBE_TOKENS
                moments[0] += tokens
                moments[4] += tokens * (paces.pop(0) if is_probe else OTHER_STEP_SECONDS)
            usage = json.dumps({"usage": {"completion_tokens": tokens}}, separators=(",", ":"))
            self._answer(f"data: {{}}\n\ndata: {usage}\n\n")

        def _answer(self, text: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield Server("engine", url, url, 0, 0.0)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_pace_is_that_of_the_probes_before_and_after_the_traffic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic, "SETTLE_SECONDS", 0.1)
    paces = [0.01, 0.03]
    with an_engine(paces) as server:
        level = traffic.offer(
            server, Mix("short", 4, 4), 20.0, 0.5, ServiceLevelObjective(30.0, 1.0), seed=1
        )
    assert level.pace == pytest.approx(0.02)
    assert paces == []
    steps = level.done.steps
    assert steps.seconds == pytest.approx(OTHER_STEP_SECONDS * steps.steps)
