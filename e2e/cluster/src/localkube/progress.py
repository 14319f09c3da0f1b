"""Prints one line per step on standard error, with the duration of the step in seconds.

Standard output stays free for results, which other programs read.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Print a step, and then, on the same line, its duration in seconds or its failure."""
    started = time.monotonic()
    print(f"  {text} …", end=" ", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException:
        say(f"failed after {time.monotonic() - started:.1f} s")
        raise
    say(f"{time.monotonic() - started:.1f} s")
