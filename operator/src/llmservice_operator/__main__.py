"""Starts a command.

In a container, process 1 must handle or block SIGTERM, or the signal is lost. A pod that is stopped
while this program imports modules would then remain for its whole termination grace period, which
is a quarter of an hour for a router. So the image starts this program with SIGTERM blocked
(operator/Dockerfile), and `run_command` unblocks the signal once it has a handler.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from llmservice_operator.errors import OperatorError
from llmservice_operator.names import ROUTER_COMMAND


def run_command() -> int:
    """Run the program; return its exit code."""
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return main()


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing has started yet, so nothing needs to be stopped.
    os._exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code. The default is the command of the process."""
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    # The imports are local, because a process of a router keeps in memory all that it imports.
    if given != ROUTER_COMMAND[1:]:
        from llmservice_operator.commands import run

        return run(given)
    from llmservice_operator.router.start import run_router

    try:
        return run_router()
    except OperatorError as error:
        sys.stderr.write(f"llmservice-operator: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(run_command())
