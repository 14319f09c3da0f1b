"""Installs Python packages that vLLM needs for some features and that the images leave out."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from localkube import paths, progress
from localkube.hub import engine
from localkube.hub.models import only_builder

SUFFIX_REQUIREMENTS = engine.SCRIPTS / "suffix-requirements.txt"
STREAMER_REQUIREMENTS = engine.SCRIPTS / "streamer-requirements.txt"


def suffix_packages() -> Path:
    """Return a folder with the package that vLLM needs for suffix decoding. It is built once."""
    return _installed("suffix-packages", SUFFIX_REQUIREMENTS, "Building arctic-inference")


def streamer_packages() -> Path:
    """Return a folder with the packages that vLLM needs for weights in an object store. They are
    installed once.
    """
    return _installed("streamer-packages", STREAMER_REQUIREMENTS, "Installing the model streamer")


def _installed(kind: str, requirements: Path, doing: str) -> Path:
    def make(folder: Path) -> None:
        with progress.step(doing):
            engine.install_packages(folder, requirements)

    return cached_folder(kind, engine.environment().name, requirements, make)


def cached_folder(kind: str, of: str, recipe: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder that a call of `make` has filled, now or earlier.

    The name of the folder is a hash of `of` and `recipe`.
    """
    digest = hashlib.sha256(of.encode() + recipe.read_bytes()).hexdigest()[:16]
    folder = paths.cache_dir() / kind / digest
    with only_builder(folder):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder
