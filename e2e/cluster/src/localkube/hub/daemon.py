"""Runs the hub in the network of a local cluster, until the cluster is removed."""

import sys
from collections.abc import Mapping
from pathlib import Path

from localkube import waiting
from localkube.cluster import Cluster
from localkube.errors import LocalkubeError
from localkube.hub.models import SMOLLM2, TINY_LLAMA
from localkube.hub.repository import Visibility
from localkube.hub.settings import HubSettings, InvalidHubSettings, RepositorySettings

DAEMON = "hub"
START_SECONDS = 60

PRIVATE_TINY_LLAMA = "llmservice-test/private-tiny-llama"
GATED_TINY_LLAMA = "llmservice-test/gated-tiny-llama"
SLOW_SMOLLM2 = "llmservice-test/slow-smollm2"
SLOW_BYTES_PER_SECOND = 4_000_000
"""Speed limit in bytes per second. The download of the larger model then takes a minute, long
enough to observe it."""

READER_TOKEN = "hf_localkubeReader"
"""Token that opens the private and the gated repository. It is not secret, because it protects only
random weights."""

STRANGER_TOKEN = "hf_localkubeStranger"
"""Token that the hub knows, but that opens neither the private nor the gated repository."""


def default_settings(models: Mapping[str, Path]) -> HubSettings:
    """Return the default settings.

    The hub serves all models. It also serves the tiny model in a private and a gated repository,
    and the larger model with a speed limit.
    """

    def served(repo_id: str, visibility: Visibility) -> RepositorySettings:
        return RepositorySettings(branches={"main": models[repo_id]}, visibility=visibility)

    behind_doors = frozenset({PRIVATE_TINY_LLAMA, GATED_TINY_LLAMA})
    return HubSettings(
        repositories={
            SMOLLM2: served(SMOLLM2, Visibility.PUBLIC),
            TINY_LLAMA: served(TINY_LLAMA, Visibility.PUBLIC),
            PRIVATE_TINY_LLAMA: served(TINY_LLAMA, Visibility.PRIVATE),
            GATED_TINY_LLAMA: served(TINY_LLAMA, Visibility.GATED),
            SLOW_SMOLLM2: RepositorySettings(
                branches={"main": models[SMOLLM2]}, bytes_per_second=SLOW_BYTES_PER_SECOND
            ),
        },
        tokens={READER_TOKEN: behind_doors, STRANGER_TOKEN: frozenset()},
    )


def read_settings(file: Path) -> HubSettings:
    """Read a configuration file. If that fails, raise a LocalkubeError that names the file."""
    try:
        return HubSettings.parse(file.read_text())
    except (InvalidHubSettings, OSError) as error:
        raise LocalkubeError(f"{file}: {error}") from error


def start(cluster: Cluster, settings: HubSettings) -> str:
    """Start the cluster's hub in place of a running one. Return its URL once it accepts requests.

    Raises LocalkubeError if the hub does not start in time.
    """
    here = settings.model_copy(update={"host": cluster.node(1).address})
    cluster.stop_daemon(DAEMON)
    settings_file(cluster).write_text(here.to_yaml())
    log = cluster.logs / f"{DAEMON}.log"
    earlier = log.stat().st_size if log.exists() else 0
    cluster.start_daemon(
        DAEMON, [sys.executable, "-m", "localkube.hub.server", str(settings_file(cluster))]
    )
    waiting.until(
        lambda: here.url.encode() in log.read_bytes()[earlier:],
        cluster=cluster,
        daemon=DAEMON,
        what="The hub does not answer",
        seconds=START_SECONDS,
    )
    return here.url


def stop(cluster: Cluster) -> None:
    """Stop the cluster's hub, if one runs."""
    cluster.stop_daemon(DAEMON)


def url(cluster: Cluster) -> str:
    """Return the URL at which pods reach the cluster's hub; raises LocalkubeError if none runs."""
    if cluster.daemons().get(DAEMON) is None:
        raise LocalkubeError(
            f"No hub runs in {cluster.name!r}. Start it: localkube --name {cluster.name} hub start"
        )
    return read_settings(settings_file(cluster)).url


def settings_file(cluster: Cluster) -> Path:
    return cluster.state / "hub.yaml"
