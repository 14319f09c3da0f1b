"""Runs downloads in separate processes, and a server that refuses requests in place of a hub."""

import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY = "org/model"
WEIGHTS = b"w" * 3_000_000
TESTS = Path(__file__).parents[1]
TOO_LONG_SECONDS = 120
DROPPED = 0
"""Value in place of a status: the server closes the connection without a response."""
PASSED_ON = 1
"""Value in place of a status: the server returns the response of the hub behind it."""


class Refusing:
    """A server that returns the given statuses in order, and then repeats the last one."""

    def __init__(self, statuses: Sequence[int], headers: dict[str, str], hub: str) -> None:
        self._statuses, self._headers, self._hub = list(statuses), headers, hub
        self.asked = 0
        """Number of requests so far."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if "agent" in handler.path:
            # The hub library requests the list of known agents once, and works without this list.
            handler.send_error(404)
            return
        status = self._statuses[min(self.asked, len(self._statuses) - 1)]
        self.asked += 1
        if status == DROPPED:
            handler.close_connection = True
            return
        if status == PASSED_ON:
            self._pass_on(handler)
            return
        handler.send_response(status)
        for name, value in self._headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        asked = urllib.request.Request(f"{self._hub}{handler.path}", method=handler.command)
        with urllib.request.urlopen(asked, timeout=TOO_LONG_SECONDS) as reply:
            handler.send_response(reply.status)
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(reply.read())


@contextmanager
def refusing(
    *statuses: int, certificate: Path | None = None, hub: str = "", **headers: str
) -> Iterator[tuple[str, Refusing]]:
    """Run a refusing server, with TLS if there is a certificate; yield its URL and the server."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    server = Refusing(statuses, sent, hub)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        do_HEAD = do_CONNECT = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
            scheme = "https"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{scheme}://127.0.0.1:{listening.server_port}", server
        finally:
            listening.shutdown()
            thread.join()


def downloaded(
    endpoint: str,
    cache: Path,
    *,
    pauses: Sequence[float] = (),
    starter: Sequence[str] = (),
    **environment: str,
) -> dict[str, Any]:
    """Download the model in a separate process; return its result or its failure.

    `starter` is a command that starts the process, for example with its own file system.
    """
    worker = [sys.executable, str(TESTS / "download_worker.py"), REPOSITORY, json.dumps(pauses)]
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS.parent / "src")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "home"), "HF_HUB_CACHE": str(cache)}
    run = subprocess.run(
        [*starter, *worker],
        env=kept | own | environment,
        capture_output=True,
        text=True,
        timeout=TOO_LONG_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result
