"""The processes of a router pod on loopback, and the part of the supervisor that informs them."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmservice_operator.router.envoy_clusters import build_endpoints, build_picker_endpoints
from llmservice_operator.router.envoy_config import ARGUMENTS, build_bootstrap, build_tls_secret
from llmservice_operator.router.envoy_names import (
    ADMIN_SOCKET,
    CLUSTER_OR_FORWARDER,
    CLUSTER_PICKERS,
    CLUSTER_REPLICAS,
    TLS_FILE,
)
from llmservice_operator.router.replica_view import ReplicaView, View, encode
from llmservice_operator.router_settings import RouterSettings, StepPrior
from llmservice_operator.scaling.signals import Snapshot
from operator_support.processes import free_port
from operator_support.replica_reports import REPORT
from router_support.commands import command_of
from router_support.replicas import FakeReplica
from shared_support.waiting import eventually_in_loop

SERVICE, NAMESPACE = "svc-a", "team-a"
PRIOR = StepPrior(fixed=0.01, prefill=1e-4, sequence=1e-5, kv=1e-9)


def settings_of(folder: Path, **settings: Any) -> RouterSettings:
    return RouterSettings(
        namespace=NAMESPACE,
        service=SERVICE,
        replicas_host="127.0.0.1",
        run_directory=folder,
        client_port=free_port(),
        picker_port=free_port(),
        forwarder_port=free_port(),
        **{"step_prior": PRIOR, **settings},
    )


def replicas_of(number: int) -> list[FakeReplica]:
    api, management = free_port(), free_port()
    identity = f"{NAMESPACE}/{SERVICE}"
    return [
        FakeReplica(f"r{at}", f"127.0.1.{at + 1}", api, management, identity)
        for at in range(number)
    ]


def snapshot(**fields: Any) -> Snapshot:
    """A report of an idle replica, with these fields."""
    idle = replace(REPORT, at=time.monotonic(), kv_capacity_tokens=1e6, max_step_tokens=8192)
    return replace(idle, **fields)


@dataclass
class Pod:
    """Envoy and its pickers."""

    settings: RouterSettings
    pickers: int = 1
    beside: "Pod | None" = None
    """Pod whose pickers this pod's Envoy asks. This pod then runs no picker."""
    picker_ports: list[int] = field(default_factory=list)
    pickers_running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    envoy: subprocess.Popen[bytes] | None = None
    _version: int = 0

    @property
    def folder(self) -> Path:
        return self.settings.run_directory

    @property
    def url(self) -> str:
        scheme = "http" if self.settings.tls_directory is None else "https"
        return f"{scheme}://127.0.0.1:{self.settings.client_port}"

    @property
    def log(self) -> str:
        return "".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))
        )

    def start(self) -> None:
        if self.beside is None:
            self.picker_ports = [self.settings.picker_port]
            self.picker_ports += [free_port() for _ in range(self.pickers - 1)]
            self.pickers_running = [self.start_picker(port) for port in self.picker_ports]
        else:
            self.picker_ports = self.beside.picker_ports
        self._write("envoy.json", build_bootstrap(self.settings))
        addresses = [("127.0.0.1", port) for port in self.picker_ports]
        self._write(f"{CLUSTER_PICKERS}.json", build_picker_endpoints(addresses, version="1"))
        if self.settings.tls_directory is not None:
            self._write(TLS_FILE, build_tls_secret(self.settings))
        self._write_endpoints([])
        command = ["envoy", "--config-path", f"{self.folder}/envoy.json", "--drain-time-s", "30"]
        with (self.folder / "envoy.log").open("ab") as log:
            self.envoy = subprocess.Popen([*command, *ARGUMENTS], stdout=log, stderr=log)

    def start_picker(self, port: int) -> subprocess.Popen[bytes]:
        settings = self.settings.model_copy(update={"picker_port": port})
        with (self.folder / f"picker-{port}.log").open("ab") as log:
            return subprocess.Popen(
                command_of("picker", settings), stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def replace_picker(self, at: int) -> None:
        """Start a picker again."""
        _end(self.pickers_running[at])
        self.pickers_running[at] = self.start_picker(self.picker_ports[at])

    def stop(self) -> None:
        processes = [*self.pickers_running, *([self.envoy] if self.envoy else [])]
        for process in processes:
            _end(process)

    async def tell(
        self,
        replicas: Sequence[FakeReplica],
        *,
        reports: Sequence[Snapshot | None] | None = None,
        draining: Sequence[FakeReplica] = (),
        key_tokens: Mapping[str, float] | None = None,
    ) -> None:
        """Tell first Envoy and then the pickers which replicas there are.

        Envoy must know a replica before a picker chooses it.
        """
        await self.tell_envoy(replicas)
        self.tell_pickers(replicas, reports=reports, draining=draining, key_tokens=key_tokens)

    async def tell_envoy(self, replicas: Sequence[FakeReplica]) -> None:
        self._write_endpoints(replicas)
        name = f"cluster.{CLUSTER_OR_FORWARDER}.membership_total"
        await eventually_in_loop(lambda: self.stat(name) == len(replicas) + 1)

    def tell_pickers(
        self,
        replicas: Sequence[FakeReplica],
        *,
        reports: Sequence[Snapshot | None] | None = None,
        draining: Sequence[FakeReplica] = (),
        cache_tokens: float = 100_000,
        others: Sequence[str] = (),
        key_tokens: Mapping[str, float] | None = None,
    ) -> None:
        """Tell the pickers which replicas there are.

        `others` are addresses of further pickers, which may follow those of this pod. `key_tokens`
        are the tokens that each replica has counted for each API key.
        """
        views = tuple(
            ReplicaView(
                name=each.name,
                address=f"{each.host}:{each.api_port}",
                is_draining=each in draining,
                report=report,
                cache_tokens=cache_tokens,
                key_tokens=key_tokens,
            )
            for each, report in zip(replicas, reports or [None] * len(replicas), strict=True)
        )
        addresses = [f"127.0.0.1:{port}" for port in self.picker_ports]
        for at, picker in enumerate(self.pickers_running):
            pickers = (*addresses[:at], *addresses[at + 1 :], *others)
            assert picker.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                picker.stdin.write(encode(View(views, pickers)))
                picker.stdin.flush()

    def stat(self, name: str) -> int:
        """Return a counter or gauge of Envoy."""
        answer = self.admin(f"/stats?filter=^{name}$")
        return int(answer.rsplit(f"{name}:", 1)[1].split()[0])

    def admin(self, target: str) -> str:
        """Return what Envoy's admin port answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(f"{self.folder}/{ADMIN_SOCKET}")
            client.sendall(
                f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
            )
            with client.makefile() as answer:
                return answer.read()

    async def ready(self, replicas: Sequence[FakeReplica]) -> None:
        """Wait until Envoy has checked the pickers and the replicas."""
        wanted = {
            CLUSTER_PICKERS: len(self.picker_ports),
            CLUSTER_REPLICAS: len(replicas),
            CLUSTER_OR_FORWARDER: len(replicas) + 1,
        }
        await eventually_in_loop(lambda: self._healthy() == wanted)

    def _healthy(self) -> dict[str, int]:
        """Return the number of healthy endpoints of each cluster, as Envoy sees them."""
        assert self.envoy is not None
        for process in (self.envoy, *self.pickers_running):
            if process.poll() is not None:
                raise RuntimeError(f"a process of the pod ended: {self.log}")
        return {
            name: self.stat(f"cluster.{name}.membership_healthy")
            for name in (CLUSTER_PICKERS, CLUSTER_REPLICAS, CLUSTER_OR_FORWARDER)
        }

    def _write_endpoints(self, replicas: Sequence[FakeReplica]) -> None:
        self._version += 1
        addresses = [each.address for each in replicas]
        port = replicas[0].management_port if replicas else None
        for name, last in (
            (CLUSTER_REPLICAS, None),
            (CLUSTER_OR_FORWARDER, ("127.0.0.1", self.settings.forwarder_port)),
        ):
            content = build_endpoints(
                name, addresses, last=last, identity_port=port, version=str(self._version)
            )
            self._write(f"{name}.json", content)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        path = self.folder / f"{name}.new"
        path.write_text(json.dumps(content))
        path.replace(self.folder / name)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
