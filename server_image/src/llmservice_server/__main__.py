"""Entry point: handles SIGTERM before any slow import.

In a container, process 1 must handle or block a signal, or the signal is lost. A pod that is
stopped while this program imports modules would then remain for its whole termination grace period.
So the image starts this program with SIGTERM and SIGINT blocked (install_on_base.py), and `main`
unblocks these signals once they have a handler.
"""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the server; return its exit code."""
    stops = (signal.SIGTERM, signal.SIGINT)
    for number in stops:
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    from llmservice_server.command_line import run

    return run(sys.argv[1:])


def _leave(number: int, frame: FrameType | None) -> None:
    # Nothing has started yet, so nothing needs to be stopped.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
