"""Finds the processes of pods on this machine, which is also the node of a local cluster."""

from pathlib import Path
from typing import Final

from e2e_support import Object

OPERATOR: Final = "llmservice-operator"
SERVER: Final = "llmservice-server"
PICKER: Final = "picker"
ENVOY: Final = "envoy"
"""Words by which the processes of an operator, a model server and a router pod are found."""


def process_of(pod: Object, word: str) -> int:
    """Return the id of a pod's process with this name, or with this word in its command line.

    A word is a whole argument, or the file name of the program.

    Raises:
        AssertionError: the pod has no such process now.

    """
    uid = pod["metadata"]["uid"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text().replace("_", "-")
            command = (folder / "cmdline").read_text().split("\0")
            name = (folder / "comm").read_text().strip()
        except OSError:
            continue
        if uid in group and word in (name, *(Path(argument).name for argument in command)):
            return int(folder.name)
    raise AssertionError(f"no process {word} of pod {uid}")
