"""Runs kubectl. No other module of the plugin starts a process.

kubectl is there, because it starts the plugin. It reads the kubeconfig, logs in and forwards ports
in the same way as the user's other commands.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Final

from llmservice_operator.api import Manifest
from llmservice_operator.errors import OperatorError

LIMIT_SECONDS: Final = 20.0
"""Longest time in seconds of a command that reads or writes objects, and of the start of a
port-forward."""
END_SECONDS: Final = 5.0
"""Longest time in seconds that a port-forward may take to end before it is killed."""


class KubectlFailed(OperatorError):
    """kubectl failed. The text is kubectl's own, or says what to change."""


class NotFound(KubectlFailed):
    """The object does not exist."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the user's choice of a cluster and a namespace."""

    flags: tuple[str, ...] = ()
    """Flags of every command, such as --context and --namespace."""
    program: str = "kubectl"

    def read(self, *arguments: str) -> Manifest:
        """Return the JSON that `kubectl get … -o json` prints.

        Raises KubectlFailed, and NotFound if the named object does not exist.
        """
        text = self.run("get", *arguments, "-o", "json")
        try:
            found: Manifest = json.loads(text)
        except ValueError as error:
            raise KubectlFailed(f"kubectl get {arguments[0]} printed no JSON: {error}") from error
        return found

    def items(self, *arguments: str) -> list[Manifest]:
        """Return the items of the list that `kubectl get` prints. Raises KubectlFailed."""
        items: list[Manifest] = self.read(*arguments)["items"]
        return items

    def run(self, *arguments: str, limit: float = LIMIT_SECONDS) -> str:
        """Return the standard output of a command. It may take `limit` seconds.

        Raises KubectlFailed, and NotFound if the named object does not exist.
        """
        with _failures_of(arguments, limit):
            done = subprocess.run(
                self._command(arguments),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        if done.returncode:
            raise _failure(done.stderr.strip() or f"kubectl {arguments[0]} failed")
        return done.stdout

    def show(self, *arguments: str, limit: float | None) -> None:
        """Run a command whose output is the plugin's output. None is no limit: the user ends it.

        Raises KubectlFailed. kubectl has then printed the cause.
        """
        with _failures_of(arguments, limit or 0):
            done = subprocess.run(
                self._command(arguments), stdin=subprocess.DEVNULL, timeout=limit, check=False
            )
        if done.returncode:
            raise KubectlFailed(f"kubectl {arguments[0]} ended with status {done.returncode}")

    @contextmanager
    def forward(self, target: str, port: int, namespace: str | None = None) -> Iterator[int]:
        """Forward a port of this machine to the port of a target such as `pod/NAME`, until the end
        of the block. Yield the port of this machine.

        Raises KubectlFailed.
        """
        place = () if namespace is None else ("--namespace", namespace)
        arguments = ("port-forward", *place, "--address", "127.0.0.1", target, f":{port}")
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            with _failures_of(arguments, LIMIT_SECONDS):
                process = subprocess.Popen(
                    self._command(arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
            printed: queue.Queue[str] = queue.Queue()
            reader = threading.Thread(target=_drain, args=(process, printed), daemon=True)
            reader.start()
            try:
                yield _local_port(process, printed, errors, target)
            finally:
                _end(process)
                reader.join(END_SECONDS)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [self.program, *self.flags, *arguments]


def _drain(process: subprocess.Popen[str], first: queue.Queue[str]) -> None:
    """Put the first line of the output into a queue, or an empty text if there is none.

    Read the other lines too, one for each connection, because kubectl would wait for a full pipe.
    """
    assert process.stdout is not None
    with process.stdout as lines:
        for number, line in enumerate(lines):
            if number == 0:
                first.put(line)
    first.put("")


def _local_port(
    process: subprocess.Popen[str], printed: queue.Queue[str], errors: IO[str], target: str
) -> int:
    """Return the port that kubectl prints first, as in `Forwarding from 127.0.0.1:40001 -> 80`."""
    try:
        line = printed.get(timeout=LIMIT_SECONDS)
    except queue.Empty:
        raise KubectlFailed(
            f"kubectl port-forward {target} forwarded no port within {LIMIT_SECONDS:g} s: check "
            "the connection to the cluster"
        ) from None
    with suppress(IndexError, ValueError):
        return int(line.split(" -> ")[0].rsplit(":", 1)[1])
    _end(process)
    errors.seek(0)
    raise _failure(errors.read().strip() or f"kubectl port-forward {target} forwarded no port")


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _failures_of(arguments: Sequence[str], limit: float) -> Iterator[None]:
    """Turn the errors of a process into KubectlFailed."""
    try:
        yield
    except FileNotFoundError as error:
        raise KubectlFailed(
            "kubectl is not on the PATH: install it, because the plugin runs it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise KubectlFailed(
            f"kubectl {arguments[0]} did not end within {limit:g} s: check the connection to the "
            "cluster, and the login plugin of the kubeconfig"
        ) from error


def _failure(text: str) -> KubectlFailed:
    lines = text.splitlines()
    # Warnings about versions and deprecations come first, the error is last.
    said = lines[-1] if len(lines) > 1 else text
    if "(NotFound)" in text:
        return NotFound(said)
    if "the server doesn't have a resource type" in text:
        return KubectlFailed(
            f"{said}: the cluster has no LLMService kind, so install the operator's chart first"
        )
    return KubectlFailed(said)
