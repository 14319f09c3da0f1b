"""An interpreter that has imported vLLM and becomes a model server as often as it is asked.

Importing takes most of a start, and is the same each time. A server forked here runs all the code
that a started one runs after its imports. It is not for tests of the start itself, nor of what is
read from the environment while importing.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.01


class ForkedProcess:
    """A server whose parent is the preloaded interpreter; to be used like a Popen."""

    def __init__(self, pid: int, status: Path) -> None:
        self.pid = pid
        self._status = status
        """The file that its parent leaves the exit code in."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def wait(self, timeout: float) -> int:
        """Return the exit code; raises TimeoutExpired."""
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
    """The interpreter; it forks one server for each line that it is sent."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def start(
        self, flags: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> ForkedProcess:
        """Start a server in a session of its own."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        status = folder / "exit-status"
        order = [list(flags), dict(environment), str(folder), str(log), str(status)]
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return ForkedProcess(int(self._process.stdout.readline()), status)


@contextmanager
def preloaded_interpreter(python: Path, environment: Mapping[str, str]) -> Iterator[Preloaded]:
    """Run the interpreter; servers that still run then are their tests' to end."""
    with subprocess.Popen(
        [python, __file__],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Preloaded(process)


def fork_servers() -> None:
    """Do in the interpreter what it is for, until nobody can ask any more."""
    from llmservice_server import cpu_platform, logs
    from llmservice_server.compat import load_vllm

    # As a server does before it imports.
    logs.configure()
    cpu_platform.prepare_environment(os.environ, cpu_platform.cpu_limit())
    load_vllm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            _keep(*json.loads(line))


def _keep(
    flags: list[str], environment: dict[str, str], folder: str, log: str, status: str
) -> None:
    """Be the parent of one server: tell who it is, and its exit code once it has ended."""
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
    # What the interpreter has set for importing stays, as it would in a server.
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.argv = ["llmservice-server", *flags]
    os._exit(main())


if __name__ == "__main__":
    fork_servers()
