"""Makes draft heads for the tiny Llama, with random weights, and the package for suffix decoding.

The heads are not among the models, because no server can serve them alone.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from localkube import paths, progress
from localkube.hub import engine
from localkube.hub.models import TINY_LLAMA, build_models, only_builder

HEADS_MAKER = engine.SCRIPTS / "make_tiny_heads.py"
SUFFIX_REQUIREMENTS = engine.SCRIPTS / "suffix-requirements.txt"


def build_heads() -> dict[str, Path]:
    """Return the folders of the heads by their kind, eagle and medusa; made once."""
    llama = build_models()[TINY_LLAMA]

    def make(folder: Path) -> None:
        engine.run_script(HEADS_MAKER.name, str(llama), str(folder))

    folder = _cached("heads", str(llama), HEADS_MAKER, make)
    return {path.name: path for path in folder.iterdir()}


def suffix_packages() -> Path:
    """Return a folder with the package that vLLM needs for suffix decoding; it is built once."""

    def make(folder: Path) -> None:
        with progress.step("Building arctic-inference"):
            engine.install_packages(folder, SUFFIX_REQUIREMENTS)

    return _cached("suffix-packages", engine.environment().name, SUFFIX_REQUIREMENTS, make)


def _cached(kind: str, of: str, recipe: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` fills. Its name is a hash of all inputs."""
    digest = hashlib.sha256(of.encode() + recipe.read_bytes()).hexdigest()[:16]
    folder = paths.cache_dir() / kind / digest
    with only_builder(folder):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(folder)
    return folder
