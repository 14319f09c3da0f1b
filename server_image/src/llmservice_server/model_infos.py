"""What vLLM finds out about the classes of models, kept in the image.

Before it makes an engine's configuration vLLM imports the model's class in a process of its own,
which takes ten seconds, and keeps what it has learnt in its cache. A new pod's cache is empty. So
the build of the image fills one, and a start lays it out where vLLM looks. vLLM compares a hash of
the class's source: what is laid out may be of no use, but never wrong.

    python -m llmservice_server.model_infos    # in the build of an image
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
"""As vLLM names it below its cache."""

logger = logging.getLogger(__name__)


def lay_out(cache: Path, baked: Path = BAKED) -> None:
    """Copy to vLLM's cache what it lacks; a cache that cannot be written stays as it is."""
    known = cache / _FOLDER
    missing = [info for info in baked.glob("*.json") if not (known / info.name).exists()]
    if not missing:
        return
    try:
        known.mkdir(parents=True, exist_ok=True)
        # Several pods may share the cache: nobody may see half a file.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            for info in missing:
                os.replace(shutil.copyfile(info, Path(folder, info.name)), known / info.name)
    except OSError as error:
        logger.warning("no model infos in the cache %s, so the start is slower: %s", cache, error)


def bake() -> None:
    """Fill the folder of this package with what vLLM says of every class that can be imported.

    Some need packages that are not there, or an accelerator.
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
            # vLLM's are for their owner only.
            shutil.copyfile(info, BAKED / info.name)
    print(f"{len(list(BAKED.iterdir()))} model infos in {BAKED}")


if __name__ == "__main__":
    bake()
