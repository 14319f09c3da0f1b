"""The first call in a fork; see `forked`. It imports only what the interpreter has imported."""

import os
import sys
from collections.abc import Mapping, Sequence


def run(arguments: Sequence[str], variables: Mapping[str, str], log: str) -> None:
    """Run the command line in this process: its environment is `variables`, its output the log."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(variables)
    from llmservice_operator.__main__ import main

    sys.exit(main(arguments))
