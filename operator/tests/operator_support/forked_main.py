"""The first function that runs in a fork; see `forked`.

It imports only modules that the forked interpreter has already imported.
"""

import os
import sys
from collections.abc import Mapping, Sequence


def run(arguments: Sequence[str], variables: Mapping[str, str], log: str) -> None:
    """Run the command line in this process, with `variables` as environment and output to `log`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    os.environ.clear()
    os.environ.update(variables)
    from llmservice_operator.__main__ import main

    sys.exit(main(arguments))
