"""Starts our server and stock vLLM with the same model and arguments, and reads their CPU time."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ROOT / "server_image" / "src"
SERVED_NAME = "model"
STOCK_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""Module that `vllm serve` runs. It is run directly, because the `vllm` command does not start from
the CPU wheel."""

_START_SECONDS = 300
_POLL_SECONDS = 0.02

ENGINE_FLAGS = ("--enforce-eager", "--distributed-executor-backend=uni")
"""Engine flags that our server sets on a CPU. Stock vLLM gets the same flags, so that the
comparison is about the API and not about the settings."""
ENGINE_VARIABLES = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    name: str
    url: str
    management_url: str
    pid: int
    """Id of the process that serves the API. The engine runs in another process."""
    ready_seconds: float

    def api_cpu_seconds(self) -> float:
        """Return the CPU time of all threads of the API process so far, in seconds."""
        # The id of the CPU clock of another process is computed as clock_getcpuclockid(3) does it.
        # The times in /proc have a resolution of only 10 ms.
        return time.clock_gettime((~self.pid << 3) | 2)


Running = AbstractContextManager[Server]
"""Context manager that starts a server on entry and stops it on exit."""


def ours(
    python: Path,
    model: Path,
    folder: Path,
    flags: Sequence[str] = (),
    *,
    name: str = "ours",
    packages: Path | None = None,
) -> Running:
    """Run our server. `packages` is a folder of additional Python packages."""
    api, management = _free_port(), _free_port()
    command = [str(python), "-m", "llmservice_server", *_model_flags(model), *flags]
    variables = {
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, (_SOURCES, packages)))),
        "LLMSERVICE_API_PORT": str(api),
        "LLMSERVICE_MANAGEMENT_PORT": str(management),
        "LLMSERVICE_PRE_STOP_SECONDS": "0",
    }
    return _running(name, command, variables, folder, api, (management, "/readyz"))


def stock(
    python: Path,
    model: Path,
    folder: Path,
    flags: Sequence[str] = (),
    *,
    name: str = "stock",
    as_shipped: bool = False,
) -> Running:
    """Run stock vLLM, either with the engine settings that our server chooses or as shipped."""
    port = _free_port()
    command = [str(python), "-m", STOCK_MODULE, *_model_flags(model), f"--port={port}", *flags]
    variables = {}
    if not as_shipped:
        command += ENGINE_FLAGS
        threads = max(1, len(os.sched_getaffinity(0)) - 1)
        variables = {**ENGINE_VARIABLES, "OMP_NUM_THREADS": str(threads)}
    return _running(name, command, variables, folder, port, (port, "/health"))


def _last_words(log: Path) -> str:
    """Return the end of a server's log, so that an error message shows it after the log is
    deleted.
    """
    return log.read_text(errors="replace")[-3000:]


def _model_flags(model: Path) -> list[str]:
    return [
        f"--model={model}",
        f"--served-model-name={SERVED_NAME}",
        "--dtype=float32",
        "--max-model-len=1024",
        f"--kv-cache-memory-bytes={256 * 1024**2}",
    ]


@contextmanager
def _running(
    name: str,
    command: Sequence[str],
    variables: dict[str, str],
    folder: Path,
    port: int,
    ready: tuple[int, str],
) -> Iterator[Server]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "VLLM_CACHE_ROOT": str(Path(command[0]).parents[1] / "cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    started = time.monotonic()
    with (
        (folder / f"{name}.log").open("wb") as log,
        subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        ) as process,
    ):
        try:
            while not _answers(*ready):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                if process.returncode is not None or time.monotonic() - started > _START_SECONDS:
                    raise RuntimeError(f"{name} did not start:\n{_last_words(Path(log.name))}")
            yield Server(
                name,
                f"http://127.0.0.1:{port}",
                f"http://127.0.0.1:{ready[0]}",
                process.pid,
                time.monotonic() - started,
            )
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
