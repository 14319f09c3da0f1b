"""One readable line per step on standard error, with the seconds it took.

Standard output stays free for results, which other programs read.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print one line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step, and close its line with how long it took or that it failed.

    On a terminal the line is completed in place; in a log each step is one whole line, printed
    when it ends, preceded by one when it begins, so that a slow step is seen to be running.
    """
    started = time.monotonic()
    on_terminal = sys.stderr.isatty()
    print(f"  {text} …", end="" if on_terminal else "\n", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException:
        _close(text, f"failed after {time.monotonic() - started:.1f} s", on_terminal)
        raise
    _close(text, f"{time.monotonic() - started:.1f} s", on_terminal)


def _close(text: str, outcome: str, on_terminal: bool) -> None:
    say(f" {outcome}" if on_terminal else f"  {text}: {outcome}")
