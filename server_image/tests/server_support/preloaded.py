"""Runs an interpreter that has imported vLLM, and forks model servers from it.

The imports take most of the time of a start, and are the same each time. A forked server runs all
the code that a started server runs after its imports. It is unsuitable for tests of the start
itself, and of environment variables that are read during the imports. The hub's variables are an
exception.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.01
LATE_IMPORTS = (
    "llmservice_server.command_line",
    "vllm._aiter_ops",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.kernels",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.v1.worker.cpu_worker",
)
"""Modules that a server or its engine imports once it knows its arguments. They take a third of the
time of a forked start."""


class ForkedProcess:
    """A server that the preloaded interpreter forked. Its interface is a part of Popen's."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self._status = status
        """File to which the parent process writes the exit code."""

    def poll(self) -> int | None:
        """Return the exit code; None while the server runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def wait(self, timeout: float) -> int:
        """Wait for the exit code and return it; raise TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked server", timeout)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Preloaded:
    """The interpreter. It forks one server for each line on its standard input."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(
        self, flags: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> ForkedProcess:
        """Start a server, or the script that the first flag names, in its own session."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        status = folder / "exit-status"
        order = [list(flags), dict(environment), str(folder), str(log), str(status)]
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return ForkedProcess(int(self._process.stdout.readline()), status)


@contextmanager
def preloaded_interpreter(python: Path, environment: Mapping[str, str]) -> Iterator[Preloaded]:
    """Run the interpreter. Each test must stop the servers that it started."""
    with subprocess.Popen(
        [python, __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Preloaded(process)


def fork_servers() -> None:
    """Import vLLM, and fork a server for each line until standard input ends."""
    from llmservice_server import cpu_platform, logs
    from llmservice_server.compat import load_vllm

    # A server does the same before its imports.
    logs.configure()
    cpu_platform.prepare_environment(os.environ, cpu_platform.cpu_limit())
    load_vllm()
    for module in LATE_IMPORTS:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            _keep(*json.loads(line))


def _keep(
    flags: list[str], environment: dict[str, str], folder: str, log: str, status: str
) -> None:
    """Fork one server, print its process id, and write its exit code when it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _become_server(flags, environment, folder, log)
    print(pid, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    unfinished = Path(f"{status}.unfinished")
    unfinished.write_text(str(code))
    unfinished.rename(status)
    os._exit(0)


def _become_server(flags: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    from llmservice_server.__main__ import main

    os.setsid()
    os.chdir(folder)
    with open(os.devnull, "rb") as nothing, open(log, "wb") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    # The variables that the interpreter set before its imports stay, as in a server.
    os.environ.update(environment)
    tempfile.tempdir = None
    _read_hub_settings_again()
    if flags and flags[0].endswith(".py"):
        sys.argv, sys.path[0] = flags, str(Path(flags[0]).parent)
        runpy.run_path(flags[0], run_name="__main__")
        os._exit(0)
    sys.argv = ["llmservice-server", *flags]
    os._exit(main())


def _read_hub_settings_again() -> None:
    """Make the hub library, which reads its environment variables at import, read them again."""
    from huggingface_hub import constants, hf_api

    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT


if __name__ == "__main__":
    fork_servers()
