"""Runs the image registry in the cluster's network. Every node pulls its images from there.

The blobs are in the cache and shared by all clusters, so an image is pushed only once.
"""

import os
from pathlib import Path

import yaml

from localkube import paths
from localkube.cluster import Cluster

ADDRESS = "localhost:5000"
"""Prefix of image references. Clients use no TLS with a registry on `localhost`."""

_PORT = 5000


def storage() -> Path:
    return paths.cluster_cache() / "registry"


def config() -> str:
    return yaml.safe_dump(
        {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(storage())},
                "delete": {"enabled": True},
            },
            # The registry listens on every address of the first node, because the other nodes reach
            # it at one of them. The secret signs uploads in progress. It is the same in all
            # clusters, because their registries share the storage.
            "http": {"addr": f":{_PORT}", "secret": "localkube"},
        }
    )


def node_hosts(cluster: Cluster) -> str:
    """Return containerd's hosts.toml for ADDRESS. It has the URL at which a node reaches the
    registry.
    """
    url = f"http://{cluster.node(1).address}:{_PORT}"
    return f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'


def start(cluster: Cluster) -> None:
    storage().mkdir(parents=True, exist_ok=True)
    configuration = cluster.state / "registry.yaml"
    configuration.write_text(config())
    # A debug variable of the caller must not change the configuration of the registry.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
    cluster.start_daemon(
        "registry", ["docker-registry", "serve", str(configuration)], environment=environment
    )
