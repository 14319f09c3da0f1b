"""A source of load reports that says what a test wants, over real HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from typing import Any

from llmservice_operator.api.load_report import LoadReport


def a_report(**fields: Any) -> LoadReport:
    """Return a report of a service that nothing is known of but `fields`."""
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
        """By NAMESPACE/NAME; without one the answer is 503."""

    def say(self, namespace: str, name: str, **fields: Any) -> None:
        self.reports[f"{namespace}/{name}"] = a_report(**fields)

    def be_silent(self, namespace: str, name: str) -> None:
        self.reports.pop(f"{namespace}/{name}", None)


@contextmanager
def report_source() -> Iterator[ReportSource]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            report = source.reports.get(self.path.removeprefix("/v1/scaling/"))
            self.send_response(503 if report is None else 200)
            self.end_headers()
            if report is not None:
                fresh = report.model_copy(update={"at": time()})
                self.wfile.write(fresh.model_dump_json(by_alias=True).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        source = ReportSource(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield source
        server.shutdown()
