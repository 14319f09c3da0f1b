"""Makes copies of models with invalid weights."""

import shutil
import struct
from pathlib import Path


def copy_with_nan_weights(model: Path, copy: Path) -> None:
    """Copy a model, with a NaN in place of each weight of its safetensors files."""
    shutil.copytree(model, copy)
    for weights in copy.glob("*.safetensors"):
        content = weights.read_bytes()
        # The first eight bytes of a file are the length of its header. A number with only 1-bits
        # is a NaN.
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        weights.write_bytes(content[:begin] + b"\xff" * (len(content) - begin))
