"""Makes draft heads for the tiny Llama, with random weights.

The heads are not among the models, because no server can serve them alone.
"""

from pathlib import Path

from localkube.hub import engine
from localkube.hub.models import TINY_LLAMA, build_models
from localkube.hub.packages import cached_folder

HEADS_MAKER = engine.SCRIPTS / "make_tiny_heads.py"


def build_heads() -> dict[str, Path]:
    """Return kind -> folder of the heads, for eagle and medusa. The heads are made once."""
    llama = build_models()[TINY_LLAMA]

    def make(folder: Path) -> None:
        engine.run_script(HEADS_MAKER.name, str(llama), str(folder))

    folder = cached_folder("heads", str(llama), HEADS_MAKER, make)
    return {path.name: path for path in folder.iterdir()}
