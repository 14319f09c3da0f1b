"""Describes a cluster by its name: its paths, and the commands that run inside it."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localkube import cgroups, paths
from localkube.errors import LocalkubeError
from localkube.progress import say

DEFAULT_NAME = "llmservice"
NODE_NETWORK = "10.200.0"
POD_NETWORK = "10.244"
SERVICE_NETWORK = "10.96"
"""Prefixes of the addresses of nodes, pods and Service objects. All clusters use the same
addresses, each in its own network namespaces."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Node:
    """A node with its own network namespace, containerd and kubelet."""

    cluster: "Cluster"
    index: int

    @property
    def name(self) -> str:
        return f"node{self.index}"

    @property
    def address(self) -> str:
        return f"{NODE_NETWORK}.{self.index}"

    @property
    def pod_subnet(self) -> str:
        return f"{POD_NETWORK}.{self.index - 1}.0/24"

    @property
    def state(self) -> Path:
        return self.cluster.state / self.name

    @property
    def netns(self) -> Path:
        """Bind mount that keeps the node's network namespace alive."""
        return self.state / "netns"

    @property
    def store(self) -> Path:
        """Folder of containerd's images. It stays when the cluster is removed, so that no image is
        imported twice."""
        return paths.cluster_cache() / "containerd" / self.cluster.name / self.name

    @property
    def containerd_socket(self) -> Path:
        return self.state / "run-containerd" / "containerd.sock"


@dataclass(frozen=True)
class Cluster:
    """A local cluster, which need not be running."""

    name: str = DEFAULT_NAME

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LocalkubeError(
                f"{self.name!r} is not a cluster name: use at most 32 lower-case letters, digits "
                "and dashes, with a letter or digit first and last."
            )

    @property
    def state(self) -> Path:
        return paths.STATE_ROOT / self.name

    @property
    def netns(self) -> str:
        """Path of the first node's network namespace, where the control plane listens."""
        return str(self.node(1).netns)

    @property
    def kubeconfig(self) -> Path:
        return self.state / "admin.conf"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pids(self) -> Path:
        return self.state / "pids"

    @property
    def cgroup(self) -> str:
        """Control group of all the cluster's processes, relative to each controller's root."""
        return f"localkube/{self.name}"

    def node(self, index: int) -> Node:
        return Node(self, index)

    def nodes(self) -> list[Node]:
        """Return the nodes that run containers. An API-only cluster has none."""
        record = self.record()
        return [] if record["apiOnly"] else [self.node(i + 1) for i in range(record["nodes"])]

    def exists(self) -> bool:
        """Return whether the cluster was started and not removed. It may be unhealthy."""
        return self.state.exists()

    def record(self) -> dict[str, Any]:
        """Return the record of `up`: its options, the folders of its programs, and whether it has
        completed.

        Raises LocalkubeError if there is no such cluster.
        """
        try:
            record: dict[str, Any] = json.loads((self.state / "cluster.json").read_text())
        except FileNotFoundError:
            raise LocalkubeError(
                f"There is no cluster {self.name!r}. Start it: localkube --name {self.name} up"
            ) from None
        return record

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a command. The cluster's kubectl and helm are first
        on PATH. The programs next to this Python are last, so that kubectl finds its plugin even
        if the environment is not activated.
        """
        programs = [
            *self.record()["programs"],
            os.environ.get("PATH", os.defpath),
            str(Path(sys.executable).parent),
        ]
        return os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "LOCALKUBE_NAME": self.name,
            "PATH": os.pathsep.join(programs),
            # Go programs then collect garbage less often, which takes less CPU time but more
            # memory.
            "GOGC": "300",
        }

    def visiting(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` in the cluster, for users and tests.

        Unlike with `inside`, the command also resolves names of Service objects. For this command
        only, the cluster's resolv.conf is mounted over that of the machine.
        """
        mount = '[ ! -e /etc/resolv.conf ] || mount --bind "$0" /etc/resolv.conf; exec "$@"'
        own_mounts = ["unshare", "--mount", "--propagation=slave", "--", "sh", "-c", mount]
        return self.inside([*own_mounts, str(self.state / "resolv.conf"), *command])

    def inside(self, command: Sequence[str], node: Node | None = None) -> list[str]:
        """Return the command line that runs `command` in a node's network namespace.

        It does not use `ip netns exec`, which remounts /sys and so hides the control groups.
        """
        return ["nsenter", f"--net={(node or self.node(1)).netns}", "--", *command]

    def exec(self, command: Sequence[str], **popen: Any) -> subprocess.CompletedProcess[Any]:
        """Run `command` in the cluster and wait for it. `popen` are options of subprocess.run."""
        popen.setdefault("env", self.environment())
        return subprocess.run(self.visiting(command), **popen)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the cluster's administrator and return its output.

        Raises LocalkubeError with kubectl's message if kubectl fails.
        """
        done = self.exec(["kubectl", *arguments], input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise LocalkubeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return str(done.stdout)

    def start_daemon(
        self,
        name: str,
        command: Sequence[str],
        *,
        node: Node | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a process that runs until `down`, and return its process id.

        The process runs in the node's network namespace and in the cluster's control group, where
        `down` finds it even if its parent has ended. Its output goes to logs/NAME.log.
        """
        for folder in (self.pids, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        # A shell starts the daemon in the background and ends. So init becomes the daemon's parent
        # and reaps it. The shell has joined the control group before, so the daemon starts in it.
        detach = ["sh", "-c", 'setsid "$@" >>"$0" 2>&1 </dev/null & echo $!']
        line = [*detach, str(self.logs / f"{name}.log"), *self.inside(command, node)]
        done = subprocess.run(
            cgroups.enter(self.cgroup, line),
            capture_output=True,
            text=True,
            env=self.environment() if environment is None else dict(environment),
            cwd="/",
            check=False,
        )
        if done.returncode:
            raise LocalkubeError(f"{name} could not be started: {done.stderr.strip()}")
        pid = int(done.stdout)
        # A process that is killed here must not leave an empty file.
        unfinished = self.pids / f"{name}.unfinished"
        unfinished.write_text(f"{pid}\n")
        unfinished.rename(self.pids / f"{name}.pid")
        return pid

    def daemons(self) -> dict[str, int | None]:
        """Return the process id of every daemon that was started; None if the daemon has ended."""
        alive = cgroups.daemons(self.cgroup)
        recorded = {each.stem: _pid_in(each) for each in sorted(self.pids.glob("*.pid"))}
        return {name: pid if pid in alive else None for name, pid in recorded.items()}

    def stop_daemon(self, name: str, wait_seconds: float = 10) -> None:
        """Stop a daemon and wait until it has ended. Do nothing if no such daemon was started.

        A daemon that has not ended after `wait_seconds` is killed. Raises LocalkubeError if it is
        still alive after `wait_seconds` more.
        """
        pid_file = self.pids / f"{name}.pid"
        if not pid_file.exists():
            return
        pid = _pid_in(pid_file)
        begun = time.monotonic()
        while pid in cgroups.daemons(self.cgroup):
            waited = time.monotonic() - begun
            if waited > 2 * wait_seconds:
                raise LocalkubeError(f"{name} (process {pid}) does not end, although it was killed")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if waited <= wait_seconds else signal.SIGKILL)
            time.sleep(0.05)
        pid_file.unlink()

    def log_tail(self, name: str, lines: int = 8) -> str:
        log = self.logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the cluster, so that `up` and `down` of one cluster never run at the same time."""
        paths.STATE_ROOT.mkdir(parents=True, exist_ok=True)
        with (paths.STATE_ROOT / f".{self.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"Waiting for another localkube process that uses cluster {self.name}")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _pid_in(file: Path) -> int:
    """Return the process id in a file; 0, which no daemon has, if its writer was killed."""
    return int(file.read_text() or "0")


def all_clusters() -> list[Cluster]:
    """Return every cluster that has state on this machine, healthy or not."""
    if not paths.STATE_ROOT.exists():
        return []
    return [Cluster(each.name) for each in sorted(paths.STATE_ROOT.iterdir()) if each.is_dir()]
