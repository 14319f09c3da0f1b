"""Helpers for tests of a real cluster: the command line, objects, and leftovers on the machine."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from localkube import cgroups
from localkube.cluster import Cluster

LOCALKUBE = str(Path(sys.executable).with_name("localkube"))


def localkube(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run localkube's command line as a user does; return its result, even if it failed."""
    line = [LOCALKUBE, "--name", name, *arguments]
    return subprocess.run(line, capture_output=True, text=True)


def succeed(name: str, *arguments: str) -> str:
    done = localkube(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(cluster: Cluster, *arguments: str) -> Any:
    return json.loads(cluster.kubectl("get", *arguments, "--output=json"))


def apply(cluster: Cluster, *manifests: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "--filename=-", stdin=json.dumps(whole))


def remains(name: str) -> dict[str, list[str]]:
    """Return kind -> what remains of a cluster on this machine; empty if nothing remains."""
    found = {
        "state": [str(Cluster(name).state)] if Cluster(name).exists() else [],
        "processes": _processes(name),
        "mounts": _mounts(str(Cluster(name).state)),
        "control groups": [
            str(root / Cluster(name).cgroup)
            for root in cgroups.roots()
            if (root / Cluster(name).cgroup).exists()
        ],
    }
    return {kind: list_ for kind, list_ in found.items() if list_}


def links() -> set[str]:
    """Return the network links of the machine itself."""
    return set(os.listdir("/sys/class/net"))


def _processes(name: str) -> list[str]:
    signs = (f"/{Cluster(name).cgroup}/", f"{Cluster(name).state}/")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue  # a zombie: it has ended, and its parent has not reaped it yet
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if any(sign in command + (process / "cgroup").read_text() for sign in signs):
                found.append(command)
    return found


def _mounts(folder: str) -> list[str]:
    """Return the mounts below the folder in every mount namespace of this machine."""
    found: set[str] = set()
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            found.update(line for line in table.read_text().splitlines() if f"{folder}/" in line)
    return sorted(found)
