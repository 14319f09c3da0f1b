"""Writes the files from which Envoy reads its configuration and its endpoints."""

import ipaddress
import json
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

from llmservice_operator.router.envoy_clusters import build_endpoints, build_picker_endpoints
from llmservice_operator.router.envoy_config import build_bootstrap, build_tls_secret
from llmservice_operator.router.envoy_names import (
    CLUSTER_OR_FORWARDER,
    CLUSTER_PICKERS,
    CLUSTER_REPLICAS,
    TLS_FILE,
)
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.router_settings import RouterSettings

BOOTSTRAP_FILE: Final = "envoy.json"

Address = tuple[str, int]


class EndpointFiles:
    """The files in the run directory. A file is written only if its content changes."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._folder = settings.run_directory
        self._replicas: list[Address] | None = None
        self._pickers: list[Address] | None = None
        self._versions = count(1)

    @property
    def bootstrap(self) -> Path:
        return self._folder / BOOTSTRAP_FILE

    def write_bootstrap(self) -> None:
        """Write the configuration with which Envoy starts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._replace(BOOTSTRAP_FILE, build_bootstrap(self._settings))
        if self._settings.tls_directory is not None:
            self._replace(TLS_FILE, build_tls_secret(self._settings))

    def write_replicas(self, replicas: Iterable[ReplicaView]) -> str | None:
        """Write the endpoints of the replicas, without those that drain.

        Return the version of the files, or None if the endpoints are the same as before.
        """
        addresses = sorted(_split(each.address) for each in replicas if not each.is_draining)
        if addresses == self._replicas:
            return None
        version = str(next(self._versions))
        forwarder = ("127.0.0.1", self._settings.forwarder_port)
        for name, last in ((CLUSTER_REPLICAS, None), (CLUSTER_OR_FORWARDER, forwarder)):
            content = build_endpoints(name, addresses, last=last, version=version)
            self._replace(f"{name}.json", content)
        self._replicas = addresses
        return version

    def write_pickers(self, hosts: Sequence[str]) -> None:
        """Write the endpoints of the pickers, in this order of precedence."""
        addresses = [(host, self._settings.picker_port) for host in hosts]
        if addresses != self._pickers:
            content = build_picker_endpoints(addresses, version=str(next(self._versions)))
            self._replace(f"{CLUSTER_PICKERS}.json", content)
            self._pickers = addresses

    def _replace(self, name: str, content: dict[str, Any]) -> None:
        """Write a new file and rename it, because Envoy may read the file at any moment."""
        new = self._folder / f"{name}.new"
        new.write_text(json.dumps(content))
        new.replace(self._folder / name)


def _split(address: str) -> Address:
    host, _, port = address.rpartition(":")
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)
