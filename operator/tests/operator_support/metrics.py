"""Helpers for tests of the metrics server: pods, and simulated model servers on real sockets."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from llmservice_operator import names
from llmservice_operator.api.load_report import LOAD_REPORT, LoadReport
from llmservice_operator.kinds import PODS
from llmservice_operator.scaling.latency import LATENCY_BUCKETS
from operator_support.processes import Api, OperatorProcess, free_port
from operator_support.scaling import load


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def delays(milliseconds_bucket: int, count: float) -> list[float]:
    return [count if i == milliseconds_bucket else 0.0 for i in range(LATENCY_BUCKETS)]


@dataclass
class Engine:
    """Management port of a simulated model server: real HTTP, with counters of a constant load."""

    address: str = "127.0.0.1"
    rate: float = 4.0
    """Requests per second."""
    phase: str = "ready"
    waiting: int = 0
    engines: int = 1
    pipeline_stages: int = 1
    duty_cycle: float | None = None
    download: tuple[int, int] | None = None
    is_silent: bool = False
    """True if the engine sends no response."""
    started: float = field(default_factory=time.time)

    def autoscale(self) -> dict[str, Any]:
        seconds = time.time() - self.started
        counters = load(self.rate, seconds) if self.phase == "ready" else load(0.0, 0.0)
        # As in a model server, the sums over steps grow with time.
        steps = [value * seconds for value in counters.steps.moments]
        told = {camel(k): v for k, v in asdict(counters).items() if k != "steps"}
        told["ttftMilliseconds"] = delays(28, counters.finished)
        told["itlMilliseconds"] = delays(20, counters.finished)
        report = {
            "started": self.started,
            "counters": {**told, "steps": {"moments": steps}},
            "running": 10,
            "waiting": self.waiting,
            "kvTokens": 42_000.0,
            "kvCapacityTokens": 420_000,
            "maxSequences": 256,
            "maxStepTokens": 1024,
            "engines": self.engines,
            "pipelineStages": self.pipeline_stages,
            "phase": self.phase,
        }
        return (
            report if self.duty_cycle is None else report | {"gpuDutyCyclePercent": self.duty_cycle}
        )

    def probe(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "phase": self.phase,
            "phaseSeconds": 1.0,
            "elapsedSeconds": round(time.time() - self.started, 1),
        }
        if self.download is not None:
            body["download"] = {"bytesDone": self.download[0], "bytesTotal": self.download[1]}
        return body

    @contextmanager
    def listening(self) -> Iterator["Engine"]:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if engine.is_silent:
                    self.close_connection = True
                    return
                is_probe = self.path != "/autoscale"
                body = json.dumps(engine.probe() if is_probe else engine.autoscale()).encode()
                self.send_response(503 if is_probe and engine.phase != "ready" else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer((self.address, names.MANAGEMENT_PORT), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def make_pod(
    api: Api, namespace: str, service: str, name: str, address: str, *, is_ready: bool = True
) -> None:
    """Make a pod of a service, and report it as running at the address, in place of a kubelet."""
    labels = {names.SERVICE_LABEL: service, names.MANAGED_BY_LABEL: names.FIELD_MANAGER}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "server", "image": "registry.example/server:1"}]},
    }
    api.create(PODS, pod)
    set_pod(api, namespace, name, address, is_ready=is_ready)


def set_pod(api: Api, namespace: str, name: str, address: str, *, is_ready: bool) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": str(is_ready), "lastTransitionTime": now}
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [ready],
    }
    api.patch(PODS, namespace, name, {"status": status}, "status")


class MetricsServerProcess(OperatorProcess):
    """`llmservice-operator metrics-server` as a process of its own."""

    command = "metrics-server"

    def __init__(self, log: Path, namespace: str, **settings: str) -> None:
        self.scaling_port, self.external_port = free_port(), free_port()
        defaults = {
            "SCALING_PORT": str(self.scaling_port),
            "EXTERNAL_METRICS_PORT": str(self.external_port),
            "DRAIN_SECONDS": "0",
        }
        super().__init__(log, namespace, **(defaults | settings))

    def report(self, namespace: str, name: str) -> LoadReport | None:
        status, text = self.get(f"/v1/scaling/{namespace}/{name}", self.scaling_port)
        return LOAD_REPORT.validate_json(text) if status == 200 else None
