"""Compares the plan of a model with the least GPU memory that its recipe names.

A plan needs the model's config.json, at ORGANISATION/NAME/config.json in the folder of
`--configs FOLDER`. Without the file, only the size of the weights is computed, from the recipe's
number of parameters.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmservice_operator.api.fields import GIB
from llmservice_operator.api.spec import LLMService
from llmservice_operator.catalogue import service_of
from llmservice_operator.errors import OperatorError
from llmservice_operator.fit import Checkpoint, plan_fit, read_shape

GB: Final = 1e9
ABOVE: Final = 1.25
"""Largest ratio between two figures that agree."""
SMALL: Final = 4 * GB
"""Largest difference, in bytes, that libraries and rounding explain."""
MODEL_LEN: Final = 8192
"""Length in tokens of the single request for which a plan needs room. The recipes do not say for
which length of a request their figures are."""
_BITS: Final = {
    "bf16": 16.0,
    "fp8": 8.0,
    "mxfp8": 8.25,
    "int8": 8.0,
    "nvfp4": 4.5,
    "mxfp4": 4.25,
    "fp4": 4.5,
    "int4": 4.5,
}
"""Mapping from the name of a precision in a recipe to the bits per parameter. The bits include the
parameter's share of the scales."""
_SIZE: Final = re.compile(r"(?<![A-Za-z0-9.])([0-9]+(?:\.[0-9]+)?)\s*([MBT])\b", re.IGNORECASE)
"""Matches a number of parameters. It does not match A4B or E2B, which are numbers of active and of
effective parameters."""
_UNITS: Final = {"M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Comparison:
    """One figure of a recipe, and the values that are computed for comparison."""

    model: str
    vendor: float
    """Minimum GPU memory that the recipe states, in bytes."""
    weights: float | None
    """Bytes of the weights. None if the recipe names no number of parameters or no known precision.
    """
    planned: float | None
    """Bytes that the plan needs on one GPU. None if no plan could be computed."""
    is_omni: bool = False
    is_quantized: bool = False

    @property
    def verdict(self) -> str:
        """The difference between the figures, and its reason."""
        if self.weights is None:
            return "not computed: the recipe names no number of parameters or no usual precision"
        if self.planned is None:
            return self._by_weights(self.weights)
        ratio = self.planned / self.vendor
        if ratio < 1:
            return "below: the figure has room for more than one request"
        if ratio > ABOVE:
            return "above: the plan has room for activations and the figure has none"
        return "agrees"

    def _by_weights(self, weights: float) -> str:
        ratio = self.vendor / weights
        if ratio < 1:
            return "the figure is less than the weights, so it is of a smaller or mixed checkpoint"
        if ratio <= ABOVE:
            return "the figure is the weights and up to a quarter"
        if self.is_omni:
            return "far above the weights: an omni model has parts that the number leaves out"
        if self.vendor - ABOVE * weights < SMALL:
            return "far above the weights: of a small model, a fixed part weighs more"
        if self.is_quantized:
            return "far above the weights: a quantized model keeps layers in 16 bits"
        return "far above the weights, for no reason that the recipe gives"


def compare(recipes: Path, configs: Path | None) -> list[Comparison]:
    """Return a comparison for each figure of the recipes."""
    return [
        _compared(recipe, variant, configs)
        for recipe in json.loads(recipes.read_text())
        for variant in recipe["variants"].values()
        if "vram_minimum_gb" in variant
    ]


def _compared(
    recipe: Mapping[str, Any], variant: Mapping[str, Any], configs: Path | None
) -> Comparison:
    model = recipe["model"]
    model_id = variant.get("model_id", model["model_id"])
    count = _parameters(model_id, model)
    bits = _BITS.get(str(variant.get("precision")))
    weights = None if count is None or bits is None else count * bits / 8
    planned = None
    if weights is not None and configs is not None:
        planned = _planned(configs / model_id / "config.json", weights)
    vendor, is_quantized = variant["vram_minimum_gb"] * GB, bits is not None and bits < 16
    return Comparison(model_id, vendor, weights, planned, bool(recipe["omni"]), is_quantized)


def _parameters(model_id: str, model: Mapping[str, Any]) -> float | None:
    """Return the number of parameters of a variant. None if it is unknown.

    It is the number in the variant's model id, if the id contains a number and differs from the
    recipe's model id. Otherwise, it is the number in the recipe.
    """
    own = model_id != model["model_id"] and _SIZE.search(model_id.rpartition("/")[2])
    found = own or _SIZE.match(str(model.get("parameter_count")))
    return float(found[1]) * _UNITS[found[2].upper()] if found else None


def _planned(config: Path, weights: float) -> float | None:
    if not config.exists():
        return None
    spec = {
        "model": {"uri": "hf://org/model"},
        "accelerator": {"count": 1},
        "engine": {"maxModelLen": MODEL_LEN},
    }
    service = LLMService.parse(service_of("model", spec))
    try:
        shape = read_shape(json.loads(config.read_text()))
        checkpoint = Checkpoint(
            {"U8": int(weights)} if shape.is_quantized else {"BF16": int(weights / 2)}
        )
        return float(plan_fit(service.spec, shape, checkpoint, 1024 * GIB).needed)
    except OperatorError:
        return None


def table(comparisons: list[Comparison]) -> Iterator[str]:
    """Yield the counts, then one line for each figure that does not agree."""
    planned = sum(it.planned is not None for it in comparisons)
    weighed = sum(it.weights is not None for it in comparisons)
    total = len(comparisons)
    yield (
        f"GPU memory: {total} figures; {planned} plans computed, the weights alone of "
        f"{weighed - planned}, neither of {total - weighed}"
    )
    for verdict, count in Counter(it.verdict for it in comparisons).most_common():
        yield f"  {count:4} figures: {verdict}"
    for it in comparisons:
        if it.verdict not in ("agrees", "the figure is the weights and up to a quarter"):
            ours = it.planned or it.weights
            size = "?" if ours is None else f"{ours / GB:,.1f}"
            yield f"  {it.model}: {it.vendor / GB:,.0f} GB, here {size} GB: {it.verdict}"
