"""Manages the control groups of a cluster. They are used to find and kill all its processes.

It supports cgroup v2 (one unified tree) and cgroup v1 (one tree per controller).
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from localkube.errors import LocalkubeError

MOUNT = Path("/sys/fs/cgroup")
_DAEMONS = "daemons"
"""Group of the daemons. It has no subgroups, because under cgroup v2 a group whose subgroups have
controllers cannot contain processes."""

_KILL_SECONDS = 20.0
_CPU_SHARES = 4 * 1024
"""CPU shares of all containers together under cgroup v1. The default is 1024.

Every session of other processes has 1024 shares too. With the default, all pods together would get
only as much CPU time on a busy machine as one session, such as that of one model server in a test.
"""


def unified() -> bool:
    return (MOUNT / "cgroup.controllers").exists()


def roots() -> list[Path]:
    """Return the root of every tree: one under cgroup v2, and one per controller under v1."""
    if unified():
        return [MOUNT]
    # Links are aliases such as cpu -> cpu,cpuacct. The tree `unified` has no controller.
    return [
        each
        for each in sorted(MOUNT.iterdir())
        if each.is_dir() and not each.is_symlink() and each.name != "unified"
    ]


def _tracking_root() -> Path:
    """Return the tree that is used to find processes.

    Under cgroup v1, this is the tree of the freezer controller, because it sets no limits.
    """
    return MOUNT if unified() else MOUNT / "freezer"


def create(group: str, children: Sequence[str]) -> None:
    """Create the group of the daemons and one group per child in every tree."""
    for root in roots():
        for name in (_DAEMONS, *children):
            (root / group / name).mkdir(parents=True, exist_ok=True)
    if unified():
        _delegate(group)
    else:
        (MOUNT / "cpu" / "localkube" / "cpu.shares").write_text(str(_CPU_SHARES))


def _delegate(group: str) -> None:
    """Enable the controllers in the group. Under cgroup v2, each level must enable them."""
    controllers = " ".join(
        f"+{name}" for name in (MOUNT / "cgroup.controllers").read_text().split()
    )
    for level in (MOUNT, MOUNT / "localkube", MOUNT / group):
        (level / "cgroup.subtree_control").write_text(controllers)


def enter(group: str, command: Sequence[str]) -> list[str]:
    """Return the command line that joins the group of the daemons and then executes `command`.

    The process joins before it can have children, so no child is ever outside the group.
    """
    procs = _tracking_root() / group / _DAEMONS / "cgroup.procs"
    return ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(procs), *command]


def members(group: str) -> set[int]:
    """Return the ids of all processes in the group and its subgroups."""
    found: set[int] = set()
    for procs in (_tracking_root() / group).rglob("cgroup.procs"):
        with suppress(OSError):  # the group has been removed meanwhile
            found.update(int(line) for line in procs.read_text().split())
    return found - {0}


def daemons(group: str) -> set[int]:
    """Return the ids of the cluster's daemons, without the processes in containers."""
    with suppress(OSError):
        text = (_tracking_root() / group / _DAEMONS / "cgroup.procs").read_text()
        return {int(line) for line in text.split()}
    return set()


def kill(group: str) -> None:
    """Kill every process of the group, and repeat this for processes that were forked meanwhile.

    Raises LocalkubeError if processes are still alive after 20 seconds.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    while alive := members(group):
        if time.monotonic() > deadline:
            raise LocalkubeError(f"Processes {sorted(alive)} do not end: inspect them with ps.")
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(group: str) -> None:
    """Remove the group and its subgroups from every tree. All their processes must have ended."""
    for root in roots():
        for folder in _deepest_first(root / group):
            with suppress(FileNotFoundError):
                folder.rmdir()
        with suppress(OSError):  # other clusters still have groups below it
            (root / group).parent.rmdir()


def _deepest_first(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir():
                yield from _deepest_first(child)
        yield folder
