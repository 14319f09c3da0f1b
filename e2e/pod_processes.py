"""Finds the processes of pods on this machine, which is also the node of a local cluster."""

from pathlib import Path
from typing import Final

from e2e_support import Object

SERVER: Final = "llmservice-server"
SUPERVISOR: Final = "router"
PICKER: Final = "router-picker"
FORWARDER: Final = "router-forwarder"
ENVOY: Final = "envoy"
"""Words of the command lines of a model server and of the processes of a router pod."""


def process_of(pod: Object, word: str) -> int:
    """Return the id of a pod's process with this word in its command line.

    A word is a whole argument, or the file name of the program.

    Raises:
        AssertionError: the pod has no such process now.

    """
    uid = pod["metadata"]["uid"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text().replace("_", "-")
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if uid in group and word in (Path(argument).name for argument in command):
            return int(folder.name)
    raise AssertionError(f"no process {word} of pod {uid}")
