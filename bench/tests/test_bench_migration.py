"""Tests that the facts of a recipe become the command lines that its users run."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from migration.cases import Case, kubeai_cases, recipe_cases
from migration.messages import follow

RECIPE: Final[dict[str, Any]] = {
    "recipe": "org/model",
    "omni": False,
    "model": {"model_id": "org/model", "base_args": ["--trust-remote-code"], "base_env": {"A": 1}},
    "features": {
        "tools": {"args": ["--tool-call-parser", "hermes"]},
        "draft": {
            "modes": {"mtp": ["--spec-tokens", "2"], "eagle": ["--spec-tokens", "3"]},
            "default_mode": "mtp",
        },
        "text_only": {"args": ["--language-model-only"]},
    },
    "opt_in_features": ["text_only"],
    "hardware_overrides": {"hopper": {"extra_args": ["--kv-cache-dtype", "fp8"]}},
    "strategy_overrides": {
        "single_node_tp": {"extra_args": ["--enforce-eager"]},
        "multi_node_tp": {"extra_args": ["--nnodes", "2"]},
    },
    "variants": {"default": {}, "fp8": {"model_id": "org/fp8", "tp": 4, "extra_env": {"B": 2}}},
}


def cases_of(tmp_path: Path, *recipes: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps(recipes))
    return {case.way: case for case in recipe_cases(path)}


def test_a_recipe_has_a_case_for_each_variant_feature_mode_hardware_and_strategy(
    tmp_path: Path,
) -> None:
    cases = cases_of(tmp_path, RECIPE)
    ways = ["", "+ usual features", "+ tools", "+ draft mtp", "+ draft eagle", "+ text_only"]
    apart = ["on hopper", "as single_node_tp"]
    assert list(cases) == [
        f"{variant} {way}".strip() for variant in ("default", "fp8") for way in ways + apart
    ]
    assert [case.way for case in cases.values() if not case.is_core] == [
        f"{variant} {way}" for variant in ("default", "fp8") for way in apart
    ]


def test_a_case_has_the_arguments_and_variables_of_all_its_parts(tmp_path: Path) -> None:
    cases = cases_of(tmp_path, RECIPE)
    assert cases["fp8 + draft eagle"].flags == {
        "--trust-remote-code": None,
        "--tensor-parallel-size": "4",
        "--spec-tokens": "3",
    }
    assert cases["fp8"].environment == {"A": 1, "B": 2}
    assert (cases["fp8"].model, cases["default"].model) == ("org/fp8", "org/model")
    assert (cases["fp8"].gpus, cases["default"].gpus) == (4, 1)
    assert cases["default + usual features"].flags == {
        "--trust-remote-code": None,
        "--tool-call-parser": "hermes",
        "--spec-tokens": "2",
    }


def test_an_omni_model_is_left_out(tmp_path: Path) -> None:
    assert cases_of(tmp_path, RECIPE | {"omni": True}) == {}


def test_an_entry_of_kubeai_is_one_case(tmp_path: Path) -> None:
    entry = {"name": "x", "url": "hf://o/m", "args": ["--seed=1"], "resourceProfile": "l4:1"}
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps([entry]))
    (case,) = kubeai_cases(path)
    assert (case.entry, case.model, case.flags) == ("x", "o/m", {"--seed": "1"})


@pytest.mark.parametrize(
    ("flag", "value", "flags"),
    [
        ("--device-memory-utilization", "0.8", {"--gpu-memory-utilization": "0.8"}),
        ("--spec-tokens", "2", {"--spec-tokens": "2"}),
    ],
)
def test_the_messages_about_a_spelling_of_a_flag_are_followed_to_an_end(
    flag: str, value: str, flags: dict[str, str]
) -> None:
    followed, changes = follow(Case("entry", "", "org/model", {flag: value}))
    assert followed.flags == flags
    assert len(changes) == (flag not in flags)
