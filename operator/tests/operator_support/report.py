"""A server of load reports that a test chooses, over real HTTP."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep, time
from typing import Any

from pydantic import TypeAdapter

from llmservice_operator.api.load_report import LOAD_REPORT, LOAD_REPORTS, LoadReport
from llmservice_operator.api.wake import Wake
from llmservice_operator.names import LOAD_REPORTS_PATH, WAKES_PATH

_WAKES = TypeAdapter(dict[str, Wake])
LONGEST_WAIT_SECONDS = 5.0
"""Longest time in seconds for which the operator waits for a service that must be woken."""


def a_report(**fields: Any) -> LoadReport:
    """Return a report of a service about which only `fields` are known."""
    return LoadReport(
        **{
            "at": 0.0,
            "demand_percent": None,
            "target_percent": 85.0,
            "message": "The load is known.",
            "cold_start_seconds": 60.0,
            "scale_down_window_seconds": 90.0,
            **fields,
        }
    )


class ReportSource:
    def __init__(self, url: str) -> None:
        self.url = url
        self.reports: dict[str, LoadReport] = {}
        """Reports by NAMESPACE/NAME. KEDA gets 503 for a service without a report."""
        self.wakes: dict[str, Wake] = {}
        """Services that must be woken, by NAMESPACE/NAME."""

    def say(self, namespace: str, name: str, **fields: Any) -> None:
        self.reports[f"{namespace}/{name}"] = a_report(**fields)

    def be_silent(self, namespace: str, name: str) -> None:
        self.reports.pop(f"{namespace}/{name}", None)


def _fresh(reports: Mapping[str, LoadReport]) -> dict[str, LoadReport]:
    return {key: replace(it, at=time()) for key, it in dict(reports).items()}


@contextmanager
def report_source() -> Iterator[ReportSource]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith(WAKES_PATH):
                until = monotonic() + LONGEST_WAIT_SECONDS
                while not source.wakes and monotonic() < until:
                    sleep(0.05)
                self._answer(_WAKES.dump_json(dict(source.wakes), by_alias=True))
            elif self.path == LOAD_REPORTS_PATH:
                # The operator reads all reports.
                self._answer(LOAD_REPORTS.dump_json(_fresh(source.reports), by_alias=True))
            else:
                # KEDA reads the report of one service.
                key = self.path.removeprefix(f"{LOAD_REPORTS_PATH}/")
                found = _fresh(source.reports).get(key)
                self._answer(None if found is None else LOAD_REPORT.dump_json(found, by_alias=True))

        def _answer(self, body: bytes | None) -> None:
            self.send_response(503 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        source = ReportSource(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield source
        server.shutdown()
