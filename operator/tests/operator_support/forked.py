"""Operators that begin as forks of an interpreter that has imported the operator but not run it.

The imports take more than a second of CPU time, and a fork does not repeat them. From `main` on, a
fork is the same as `python -m llmservice_operator run`, with a memory of its own.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from operator_support.forked_main import run
from operator_support.processes import OperatorProcess, Running

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["__main__", "llmservice_operator.commands", "llmservice_operator.process"]
)


class _Fork:
    """A fork, with those methods of a subprocess that an OperatorProcess uses."""

    def __init__(self, arguments: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self._process = _FORKS.Process(
            target=run, args=(list(arguments), dict(variables), str(log)), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended after {timeout:g} s")
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


class ForkedOperator(OperatorProcess):
    """`llmservice-operator run` as a fork of an interpreter that has imported it."""

    def _begin(self, variables: Mapping[str, str]) -> Running:
        return _Fork([self.command], variables, self.log)
