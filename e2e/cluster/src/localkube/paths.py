"""Paths of the cache, which outlives a cluster, and of the state, which is removed with it.

The state is outside the cache because it contains unix sockets, whose paths must be short.
"""

import os
from pathlib import Path

import localkube

STATE_ROOT = Path("/var/lib/localkube")
"""Parent folder of the state of all clusters. `localkube down` removes the state of a cluster."""

CACHED = (
    *("client-env", "earlier-versions", "engine-env", "heads", "images", "localkube"),
    *("models", "mypy", "references", "streamer-packages", "suffix-packages"),
)
"""Folders of the project's tools in the cache."""


def cache_dir() -> Path:
    """Return the cache folder of results that are slow to build, shared by the project's tools."""
    if configured := os.environ.get("LLMSERVICE_CACHE"):
        return Path(configured)
    parent = os.environ.get("XDG_CACHE_HOME")
    return (Path(parent) if parent else Path.home() / ".cache") / "llmservice"


def cluster_cache() -> Path:
    """Return this tool's part of the cache: binaries, image stores, the registry's blobs."""
    return cache_dir() / "localkube"


def go_sources() -> Path:
    """Return the folder of the Go modules that the cluster's programs are built from."""
    return Path(localkube.__file__).parents[2] / "go"
