"""Measures the time that a probe and another client wait for a server.

It runs in a separate process, because the test's process is busy sending bodies and would measure
its own delays.
"""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from server_support.engine import ModelServer
from shared_support.cpu_time import cpu_seconds

PROBE, PART, REFUSED = "/livez", "another client", "refused"
_PAUSE_SECONDS = 0.02
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Wait:
    """One wait of the probe or of the other client. `seconds` is its duration."""

    kind: str
    ended: float
    """End of the wait, in seconds of the monotonic clock, which all processes share."""

    seconds: float
    server_seconds: float
    """CPU time of the server during the wait, without its engine."""

    @property
    def counted_seconds(self) -> float:
        """Duration to compare with a limit. Of the wait for a probe, only the CPU time of the
        server counts, because a busy machine lengthens the rest.
        """
        return min(self.seconds, self.server_seconds) if self.kind == PROBE else self.seconds


@dataclass(frozen=True)
class Question:
    """Request that the other client sends repeatedly."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


@contextmanager
def watching(server: ModelServer, question: Question, folder: Path) -> Iterator[list[Wait]]:
    """Watch the server during the context; yield a list that is filled when the context ends."""
    body, notes = folder / "question", folder / "waits"
    body.write_bytes(question.body)
    headers = json.dumps({**server.headers, **question.headers})
    numbers = map(str, (server.api_port, server.management_port, server.process.pid))
    command = [sys.executable, "-m", __name__, *numbers, question.path, headers, str(body)]
    waits: list[Wait] = []
    with (
        notes.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            cwd=Path(__file__).parents[1],
            env={"PYTHONPATH": ":".join(sys.path)},
        ) as process,
    ):
        yield waits
        process.communicate()
    assert process.returncode == 0
    for line in notes.read_text().splitlines():
        waits.append(Wait(*json.loads(line)))


class _Bystander:
    def __init__(self, api_port: int, management_port: int, server_pid: int) -> None:
        self._api_port = api_port
        self._management_port = management_port
        self._server_pid = server_pid
        self._over = threading.Event()
        self._waits: list[tuple[str, float, float, float]] = []

    def watch(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Watch until standard input ends, then print the waits."""
        threads = [
            threading.Thread(target=self._probe),
            threading.Thread(target=self._ask, args=(path, headers, body)),
        ]
        for each in threads:
            each.start()
        sys.stdin.read()
        self._over.set()
        for each in threads:
            each.join()
        for wait in self._waits:
            print(json.dumps(wait))

    def _now(self) -> tuple[float, float]:
        """Return the present time, and the CPU time of the server."""
        return time.monotonic(), cpu_seconds(self._server_pid)

    def _note(self, kind: str, began: tuple[float, float]) -> tuple[float, float]:
        now = self._now()
        self._waits.append((kind, now[0], now[0] - began[0], now[1] - began[1]))
        return now

    def _probe(self) -> None:
        while not self._over.wait(_PAUSE_SECONDS):
            began = self._now()
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._management_port, timeout=_PATIENCE_SECONDS
            )
            connection.request("GET", "/livez")
            assert connection.getresponse().status == 200
            connection.close()
            self._note(PROBE, began)

    def _ask(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send the request repeatedly, and record each wait for a part of an answer.

        A refusal does not end the wait.
        """
        began = self._now()
        while not self._over.wait(_PAUSE_SECONDS):
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._api_port, timeout=_PATIENCE_SECONDS
            )
            connection.request("POST", path, body, dict(headers))
            response = connection.getresponse()
            if response.status != 200:
                assert response.status == 503, response.read()
                self._note(REFUSED, began)
                continue
            while response.read1(65536):
                began = self._note(PART, began)
            connection.close()
            began = self._now()


if __name__ == "__main__":
    _Bystander(*map(int, sys.argv[1:4])).watch(
        sys.argv[4], json.loads(sys.argv[5]), Path(sys.argv[6]).read_bytes()
    )
