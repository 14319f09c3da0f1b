"""Sizes of well-known models, in the form of their config.json."""

import json
from pathlib import Path
from typing import Any, Final

CONFIGS: Final[dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).parents[1].joinpath("model_shapes.json").read_text()
)
"""config.json by the model's name: only the fields that decide on the memory."""
