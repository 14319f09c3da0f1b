"""Entry point: heeds SIGTERM before anything slow is imported.

As process 1 of a container a program that has no handler yet never hears of a signal: the pod
would then live through its whole termination grace.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the server; return its exit code."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    from llmservice_server.command_line import run

    return run(sys.argv[1:])


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing has been started that would have to be stopped.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
