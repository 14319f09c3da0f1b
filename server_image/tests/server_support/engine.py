"""Starts a model server with a real engine as a separate process, and sends HTTP requests to it."""

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_support.preloaded import ForkedProcess, Preloaded
from shared_support.cpu_time import cpu_seconds
from shared_support.waiting import eventually

SERVER_IMAGE = Path(__file__).parents[2]
START_SECONDS = 240
"""Time limit of a start in seconds. A start takes 15 seconds on two idle cores. On busy cores, the
imports alone take a minute."""
STOP_SECONDS = 60
SERVED_NAME = "tiny"
STOCK_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""Module that `vllm serve` runs. With the CPU wheel, the `vllm` command itself does not start."""


@dataclass(frozen=True)
class Reply:
    """One complete HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: str

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """Data of the server-sent events in the body."""
        return [line[6:] for line in self.body.splitlines() if line.startswith("data: ")]


class ServerEnded(Exception):
    """The server ended while a test waited for it. The message is the server's log."""


class ModelServer:
    """One running server process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes] | ForkedProcess,
        ports: tuple[int, int],
        folder: Path,
    ) -> None:
        self.process = process
        self.api_port, self.management_port = ports
        self.log = folder / "server.log"
        self._termination_log = folder / "termination-log"
        self.headers = {"Content-Type": "application/json"}
        """Headers that are sent with every request."""

    def request(
        self,
        method: str,
        path: str,
        data: object = None,
        port: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request and read the whole response. `headers` replaces `self.headers`."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", port or self.api_port, timeout=START_SECONDS
        )
        try:
            body = data if isinstance(data, bytes | None) else json.dumps(data).encode()
            sent = self.headers if headers is None else headers
            connection.request(method, path, body, dict(sent))
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, received, response.read().decode())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, data: object) -> Reply:
        return self.request("POST", path, data)

    def probe(self, path: str) -> Reply:
        return self.request("GET", path, port=self.management_port)

    def metric(self, sample: str) -> float:
        """Return the sum of the samples in /metrics with this name, or with this name and these
        labels; 0 if there is none.
        """
        page = self.probe("/metrics").body
        named = (f"{sample}{{", f"{sample} ")
        values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(named)]
        return sum(map(float, values))

    def counters(self) -> dict[str, Any]:
        """Return the engine's counters of work since the server was ready."""
        counted: dict[str, Any] = self.probe("/autoscale").json()["counters"]
        return counted

    def wait_until_ready(self) -> None:
        self.eventually(lambda: self.is_listening() and self.probe("/readyz").status == 200)

    def wait_for_arrivals(self, sequences: int) -> None:
        """Wait until this number of sequences has arrived since the server was ready."""
        self.eventually(lambda: self.counters()["arrivals"] >= sequences, seconds=60)

    def is_listening(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.management_port)) == 0

    def eventually(self, holds: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait until the condition holds. Fail with the server's log if it does not hold in time,
        or if the server ends.
        """

        def holds_while_running() -> bool:
            if self.process.poll() is not None:
                raise ServerEnded(self.log.read_text())
            return holds()

        eventually(holds_while_running, seconds, self.log.read_text)

    def engine_pid(self) -> int:
        """Return the id of the engine process."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for task in children for pid in task.read_text().split()]
        (engine,) = (
            pid for pid in pids if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()
        )
        return engine

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server's process has taken so far, without its engine."""
        return cpu_seconds(self.process.pid)

    def terminate_child(self) -> None:
        """Send SIGTERM to a server whose parent process is a starter command."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (child,) = map(int, children.read_text().split())
        os.kill(child, signal.SIGTERM)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        return self.process.wait(STOP_SECONDS)

    def termination_message(self) -> dict[str, str]:
        """Return the termination message that the kubelet would read."""
        message: dict[str, str] = json.loads(self._termination_log.read_text())
        return message


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def common_environment(python: Path, folder: Path) -> dict[str, str]:
    """Return the environment variables of every process that imports vLLM, such as a server."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(SERVER_IMAGE / "src"),
        "VLLM_CACHE_ROOT": str(python.parents[1] / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Two threads would mostly wait for each other, and waiting threads use CPU time.
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def running_server(
    python: Path | Preloaded, folder: Path, *flags: str, starter: str = "", **settings: str
) -> Iterator[ModelServer]:
    """Start the server with engine flags and environment settings, and kill it afterwards.

    `starter` is a command that starts the server, for example in its own PID namespace.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "termination-log").touch()
    ports = free_ports()
    environment = {
        "LLMSERVICE_API_PORT": str(ports[0]),
        "LLMSERVICE_MANAGEMENT_PORT": str(ports[1]),
        "LLMSERVICE_TERMINATION_LOG": str(folder / "termination-log"),
        "LLMSERVICE_PRE_STOP_SECONDS": "0",
        **settings,
    }
    log = folder / "server.log"
    process: subprocess.Popen[bytes] | ForkedProcess
    if isinstance(python, Preloaded):
        environment |= {"HOME": str(folder), "TMPDIR": str(folder)}
        process = python.start(flags, environment, folder, log)
    else:
        command = [*starter.split(), str(python), "-m", "llmservice_server", *flags]
        process = _started(command, common_environment(python, folder) | environment, log)
    with _ending(process):
        yield ModelServer(process, ports, folder)


@contextmanager
def running_stock(python: Path, folder: Path, *flags: str) -> Iterator[ModelServer]:
    """Start vLLM's own server with the engine settings that the model server uses on a CPU.

    vLLM's server has only one port, which also serves /health and /metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_ports()[0]
    alike = ("--enforce-eager", "--distributed-executor-backend=uni")
    environment = common_environment(python, folder) | {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) - 1)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_COMPILE_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python), "-m", STOCK_MODULE, f"--port={port}", *alike, *flags]
    process = _started(command, environment, folder / "server.log")
    with _ending(process):
        yield ModelServer(process, (port, port), folder)


def _started(
    command: list[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )


@contextmanager
def _ending(process: "subprocess.Popen[bytes] | ForkedProcess") -> Iterator[None]:
    try:
        yield
    finally:
        # The group includes the engine process, which may outlive its server.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def flags_for(model: Path | str, context: int = 512) -> tuple[str, ...]:
    """Return engine flags as the operator would pass them, with sizes that suit a test machine.

    `context` is the length of the context in tokens.
    """
    return (
        f"--model={model}",
        f"--served-model-name={SERVED_NAME}",
        "--dtype=float32",
        f"--max-model-len={context}",
        f"--kv-cache-memory-bytes={64 * 1024**2}",
    )


def documented_examples(paths: Mapping[str, Any]) -> dict[str, Any]:
    """Return the example body of each path of an OpenAPI document that has an example."""
    return {
        path: media["example"]
        for path, operations in paths.items()
        for operation in operations.values()
        for media in operation.get("requestBody", {}).get("content", {}).values()
        if "example" in media
    }
