"""A Gateway on loopback: an Envoy that is configured as implementations of the Gateway API do it.

It asks the pickers of a service in the Endpoint Picker Protocol, with every part of a request and
of its answer, and encrypts the connection without checking the certificate.
"""

import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmservice_operator.router.envoy_parts import TYPES, protocol, typed
from llmservice_operator.router.picker_status import read_status
from llmservice_operator.router.replica_view import ReplicaView, View, encode
from llmservice_operator.router_settings import RouterSettings
from operator_support.processes import free_port
from router_support.commands import command_of
from router_support.replicas import FakeReplica
from shared_support.waiting import eventually_in_loop

SUBSET_HEADER = "x-test-subset"
"""Header of a test's request with the only address that the picker may choose; `none` for no
address."""
DESTINATION = "x-gateway-destination-endpoint"


def endpoints(addresses: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    return [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
        for host, port in addresses
    ]


def picker_filter(seconds: int) -> dict[str, Any]:
    return typed(
        "envoy.filters.http.ext_proc",
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "pickers"}},
        failure_mode_allow=True,  # FailOpen
        allow_mode_override=True,
        message_timeout=f"{seconds}s",
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    )


def subset_routes(replicas: Sequence[FakeReplica]) -> list[dict[str, Any]]:
    """Return routes that tell the picker the only address that it may choose.

    A Gateway does so for requests that must stay in one zone, for example.
    """
    by_value = {f"{host}:{port}": [f"{host}:{port}"] for host, port in map(_address, replicas)}
    metadata = "envoy.filters.http.set_metadata"
    return [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": SUBSET_HEADER, "string_match": {"exact": value}}],
            },
            "route": {"cluster": "replicas", "timeout": "0s"},
            "typed_per_filter_config": {
                metadata: {
                    "@type": f"{TYPES}extensions.filters.http.set_metadata.v3.Config",
                    "metadata": [
                        {
                            "metadata_namespace": "envoy.lb.subset_hint",
                            "value": {f"{DESTINATION}-subset": allowed},
                        }
                    ],
                }
            },
        }
        for value, allowed in {**by_value, "none": []}.items()
    ]


def _address(replica: FakeReplica) -> tuple[str, int]:
    return replica.address


@dataclass
class Gateway:
    """The Envoy of a Gateway, and the pickers of a service."""

    folder: Path
    settings: RouterSettings
    replicas: Sequence[FakeReplica]
    pickers: int = 1
    asked: Sequence[int] = (0,)
    """Numbers of the pickers that the Gateway asks."""
    seconds: int = 30
    """Time in seconds for which the Gateway waits for an answer of a picker."""
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ports: list[tuple[int, int]] = field(default_factory=list)
    """For each picker, its port for other pickers and its port for Gateways."""
    envoy: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.ports = sorted((free_port(), free_port()) for _ in range(self.pickers))
        self.running = [self._start_picker(at) for at in range(self.pickers)]
        path = self.folder / "gateway.json"
        path.write_text(json.dumps(self._bootstrap()))
        command = ["envoy", "--config-path", str(path), "--concurrency", "1"]
        with (self.folder / "gateway.log").open("ab") as log:
            self.envoy = subprocess.Popen(
                [*command, "--disable-hot-restart", "--log-level", "warning"],
                stdout=log,
                stderr=log,
            )

    def _start_picker(self, at: int) -> subprocess.Popen[bytes]:
        folder = self.folder / f"picker-{at}"
        folder.mkdir(exist_ok=True)
        own, gateway = self.ports[at]
        settings = self.settings.model_copy(
            update={
                # Pickers have an address of their own, as router pods have.
                "pod_address": "127.0.0.1",
                "picker_port": own,
                "gateway_port": gateway,
                "run_directory": folder,
            }
        )
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                command_of("picker", settings), stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def stop(self) -> None:
        for process in (*self.running, *([self.envoy] if self.envoy else [])):
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    async def ready(self) -> None:
        """Tell the pickers the replicas, and wait until the Gateway finds all pickers healthy."""
        for at in range(self.pickers):
            self.tell(at)
        await eventually_in_loop(lambda: self.healthy_pickers() == len(self.asked))

    def tell(self, at: int, replicas: Sequence[FakeReplica] | None = None) -> None:
        """Tell a picker the other pickers, and these replicas or all."""
        views = tuple(
            ReplicaView(
                name=each.name,
                address=f"{each.host}:{each.api_port}",
                is_draining=False,
                report=None,
                cache_tokens=100_000,
            )
            for each in (self.replicas if replicas is None else replicas)
        )
        others = tuple(
            f"127.0.0.1:{own}" for number, (own, _) in enumerate(self.ports) if number != at
        )
        stdin = self.running[at].stdin
        assert stdin is not None
        stdin.write(encode(View(views, others)))
        stdin.flush()

    def stat(self, name: str) -> int:
        """Return a counter or gauge of the Gateway's Envoy."""
        url = f"http://127.0.0.1:{self.admin_port}/stats?filter=^{name}$"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.read().decode().rsplit(":", 1)[1])

    def healthy_pickers(self) -> int | None:
        """Return the number of pickers that the Gateway finds healthy; None if it does not answer.

        Raises RuntimeError if the Gateway has ended.
        """
        if self.envoy is not None and self.envoy.poll() is not None:
            raise RuntimeError(
                f"the Gateway has ended: {(self.folder / 'gateway.log').read_text()}"
            )
        try:
            return self.stat("cluster.pickers.membership_healthy")
        except (OSError, IndexError):
            return None

    async def picks(self, at: int) -> int:
        """Return how many replicas a picker has chosen."""
        status = await read_status(self.folder / f"picker-{at}")
        lines = (line for line in status.metrics.splitlines() if "_picks_total{" in line)
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)

    def _bootstrap(self) -> dict[str, Any]:
        pickers = {
            "name": "pickers",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": protocol(
                explicit_http_config={"http2_protocol_options": {}}
            ),
            "transport_socket": typed(
                "envoy.transport_sockets.tls",
                "transport_sockets.tls.v3.UpstreamTlsContext",
                common_tls_context={"alpn_protocols": ["h2"]},
            ),
            # A Service object leaves out pods that are not ready.
            "health_checks": [
                {
                    "timeout": f"{self.seconds}s",
                    "interval": "0.25s",
                    "no_traffic_interval": "0.25s",
                    "unhealthy_threshold": 1,
                    "healthy_threshold": 1,
                    "grpc_health_check": {
                        "service_name": "envoy.service.ext_proc.v3.ExternalProcessor"
                    },
                }
            ],
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "load_assignment": {
                "cluster_name": "pickers",
                "endpoints": [
                    {
                        "lb_endpoints": endpoints(
                            [("127.0.0.1", self.ports[at][1]) for at in self.asked]
                        )
                    }
                ],
            },
        }
        override = typed(
            "override_host",
            "load_balancing_policies.override_host.v3.OverrideHost",
            override_host_sources=[
                {"header": DESTINATION},
                {"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}},
            ],
            fallback_policy={
                "policies": [
                    {
                        "typed_extension_config": typed(
                            "round_robin",
                            "load_balancing_policies.round_robin.v3.RoundRobin",
                        )
                    }
                ]
            },
        )
        replicas = {
            "name": "replicas",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_balancing_policy": {"policies": [{"typed_extension_config": override}]},
            "load_assignment": {
                "cluster_name": "replicas",
                "endpoints": [{"lb_endpoints": endpoints([*map(_address, self.replicas)])}],
            },
        }
        everything = {
            "match": {"prefix": "/"},
            "route": {
                "cluster": "replicas",
                "timeout": "0s",
                "retry_policy": {"retry_on": "connect-failure", "num_retries": 1},
            },
        }
        manager = typed(
            "envoy.filters.network.http_connection_manager",
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="gateway",
            route_config={
                "virtual_hosts": [
                    {
                        "name": "service",
                        "domains": ["*"],
                        "routes": [*subset_routes(self.replicas), everything],
                    }
                ]
            },
            http_filters=[
                typed(
                    "envoy.filters.http.set_metadata",
                    "filters.http.set_metadata.v3.Config",
                ),
                picker_filter(self.seconds),
                typed("envoy.filters.http.router", "filters.http.router.v3.Router"),
            ],
        )
        listener = {
            "name": "gateway",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": self.port}},
            "filter_chains": [{"filters": [manager]}],
        }
        admin = {"address": "127.0.0.1", "port_value": self.admin_port}
        return {
            "admin": {"address": {"socket_address": admin}},
            "static_resources": {"listeners": [listener], "clusters": [pickers, replicas]},
        }
