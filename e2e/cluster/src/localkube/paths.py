"""Where things lie: the cache that outlives a cluster, and the state that goes with it.

The state is outside the cache because unix sockets lie in it, whose paths must stay short.
"""

import os
from pathlib import Path

import localkube

STATE_ROOT = Path("/var/lib/localkube")
"""Parent of every cluster's state; all of it goes on `localkube down`."""

CACHED = ("engine-env", "heads", "images", "localkube", "models", "suffix-packages")
"""What the project's tools keep in the cache folder."""


def cache_dir() -> Path:
    """Return the folder of everything slow to make, shared by all of the project's tools."""
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
