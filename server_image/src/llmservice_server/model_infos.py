"""Stores vLLM's information about model classes in the image, and copies it to vLLM's cache.

Before vLLM creates an engine's configuration, it imports the model's class in a separate process,
which takes ten seconds. vLLM caches the information about the class, but the cache of a new pod is
empty. So the build of the image fills a cache, and each start copies it to vLLM's cache. vLLM
compares a hash of the class's source, so it ignores stored information that does not match.

python -m llmservice_server.model_infos   # in the build of an image
"""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from llmservice_server.compat import model_inspections

BAKED = Path(__file__).with_name("modelinfos")
_FOLDER = "modelinfos"
"""Name of vLLM's folder below its cache."""

logger = logging.getLogger(__name__)


def lay_out(cache: Path, baked: Path = BAKED) -> None:
    """Copy missing entries to vLLM's cache; a cache that cannot be written stays unchanged."""
    known = cache / _FOLDER
    missing = [info for info in baked.glob("*.json") if not (known / info.name).exists()]
    if not missing:
        return
    try:
        known.mkdir(parents=True, exist_ok=True)
        # Several pods may share the cache, and none may read an incomplete file.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            for info in missing:
                os.replace(shutil.copyfile(info, Path(folder, info.name)), known / info.name)
    except OSError as error:
        logger.warning("no model infos in the cache %s, so the start is slower: %s", cache, error)


def bake() -> None:
    """Fill the folder of this package with the information about every class that can be imported.

    Classes that need a missing package or an accelerator are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({"HOME": folder, "XDG_CACHE_HOME": folder, "VLLM_CACHE_ROOT": folder})
        for name, inspect in model_inspections().items():
            try:
                inspect()
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        shutil.rmtree(BAKED, ignore_errors=True)
        BAKED.mkdir()
        for info in Path(folder, _FOLDER).glob("*.json"):
            # vLLM's files are readable only by their owner.
            shutil.copyfile(info, BAKED / info.name)
    print(f"{len(list(BAKED.iterdir()))} model infos in {BAKED}")


if __name__ == "__main__":
    bake()
