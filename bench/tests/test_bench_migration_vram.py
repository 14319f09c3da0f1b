"""Tests the comparison of a recipe's GPU memory with the computed weights and plan."""

import json
from pathlib import Path
from typing import Any

import pytest

from migration.vram import Comparison, compare, table
from operator_support.shapes import CONFIGS


def compared(tmp_path: Path, configs: Path | None = None, **facts: Any) -> Comparison:
    recipe = {
        "omni": facts.pop("omni", False),
        "model": {"model_id": "org/model-8B", "parameter_count": facts.pop("count", "8B")},
        "variants": {"default": {"precision": "bf16", **facts}, "without a figure": {}},
    }
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps([recipe]))
    (found,) = compare(path, configs)
    return found


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"vram_minimum_gb": 20}, "the figure is the weights and up to a quarter"),
        ({"vram_minimum_gb": 12}, "the figure is less than the weights"),
        ({"vram_minimum_gb": 23}, "far above the weights: of a small model"),
        ({"vram_minimum_gb": 80}, "far above the weights, for no reason"),
        ({"vram_minimum_gb": 80, "precision": "fp8"}, "far above the weights: a quantized model"),
        ({"vram_minimum_gb": 80, "omni": True}, "far above the weights: an omni model"),
        ({"vram_minimum_gb": 80, "count": "Undisclosed"}, "not computed: "),
        ({"vram_minimum_gb": 80, "precision": "int2/4/8"}, "not computed: "),
    ],
)
def test_a_figure_is_explained_by_the_weights(
    tmp_path: Path, facts: dict[str, Any], verdict: str
) -> None:
    assert compared(tmp_path, **facts).verdict.startswith(verdict)


@pytest.mark.parametrize(
    ("model_id", "billions"),
    [("org/small-4B", 4), ("org/model-A3B-E2B-FP8", 8), ("org/x-0.6B", 0.6)],
)
def test_a_variant_of_another_size_has_the_number_in_its_name(
    tmp_path: Path, model_id: str, billions: float
) -> None:
    found = compared(tmp_path, vram_minimum_gb=20, model_id=model_id)
    assert found.weights == pytest.approx(2e9 * billions)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [(80, "below: the figure has room"), (20, "agrees"), (10, "above: the plan has room")],
)
def test_a_plan_is_compared_where_the_config_is_there(
    tmp_path: Path, figure: int, verdict: str
) -> None:
    folder = tmp_path / "org/model-8B"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-8b"]))
    assert compared(tmp_path, tmp_path, vram_minimum_gb=figure).verdict.startswith(verdict)


def test_the_table_says_which_share_was_computed(tmp_path: Path) -> None:
    known = compared(tmp_path, vram_minimum_gb=20)
    unknown = compared(tmp_path, vram_minimum_gb=20, count="Undisclosed")
    assert next(table([known, known, unknown])) == (
        "GPU memory: 3 figures; 0 plans computed, the weights alone of 2, neither of 1"
    )
