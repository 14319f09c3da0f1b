"""Sizes of well-known models, in the form of their config.json."""

import json
from pathlib import Path
from typing import Any, Final

CONFIGS: Final[dict[str, dict[str, Any]]] = json.loads(
    Path(__file__).parents[1].joinpath("model_shapes.json").read_text()
)
"""config.json of each model by its name, with only the fields that determine the memory."""
