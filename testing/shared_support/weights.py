"""Makes models with wrong weights."""

import shutil
import struct
from pathlib import Path


def copy_with_nan_weights(model: Path, copy: Path) -> None:
    """Copy a model, with a NaN in place of each weight of its safetensors files."""
    shutil.copytree(model, copy)
    for weights in copy.glob("*.safetensors"):
        content = weights.read_bytes()
        # A file begins with the length of its header, in eight bytes. 1-bits alone are a NaN.
        begin = 8 + struct.unpack("<Q", content[:8])[0]
        weights.write_bytes(content[:begin] + b"\xff" * (len(content) - begin))
