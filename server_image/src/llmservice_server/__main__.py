"""Entry point: handles SIGTERM before any slow import.

Process 1 of a container receives no signal that it has no handler for. Without an early handler, a
pod that is stopped while it imports would stay for its whole termination grace period.
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
    # Nothing has started yet, so nothing needs to be stopped.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
