"""Builds the command lines of other projects' catalogues from JSON extracts of these catalogues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from translation import Flags, flags_of

GPUS_OF_A_NODE: Final = 8
SINGLE_NODE: Final = ("single_node_tp", "single_node_tep", "single_node_dep")
SPLITS: Final = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


@dataclass(frozen=True)
class Case:
    """One command line with which a catalogue runs a model."""

    entry: str
    """Name of the catalogue's entry."""
    way: str
    """Name of the variant, with the added features, the kind of hardware or the strategy, if any.
    """
    model: str
    flags: Flags
    environment: Mapping[str, Any] = field(default_factory=dict)
    is_core: bool = True
    """Whether the case counts for the verdict on its entry. Cases for one kind of hardware or one
    strategy do not count, and are reported separately."""

    @property
    def gpus(self) -> int:
        """Number of GPUs that the command line requires."""
        count = 1
        for flag in SPLITS:
            count *= int(self.flags.get(flag) or 1)
        return count


def recipe_cases(path: Path) -> list[Case]:
    """Return the cases of every recipe of vllm-project/recipes, except recipes of omni models."""
    return [
        case
        for recipe in json.loads(path.read_text())
        if not recipe["omni"]
        for case in _of_recipe(recipe)
    ]


def _of_recipe(recipe: Mapping[str, Any]) -> Iterator[Case]:
    features = recipe.get("features", {})
    for name, variant in recipe["variants"].items():
        case = partial(_case, recipe, name)
        usual: list[str] = []
        for feature, facts in features.items():
            if feature not in recipe.get("opt_in_features", []):
                usual += _modes(facts)[facts.get("default_mode", "")]
        yield case("", [], {})
        yield case("+ usual features", usual, {})
        for feature, facts in features.items():
            for mode, more in _modes(facts).items():
                yield case(f"+ {feature} {mode}".strip(), more, {})
        hardware = {**recipe.get("hardware_overrides", {}), **variant.get("hardware_overrides", {})}
        for machine, facts in hardware.items():
            more, env = facts.get("extra_args", []), facts.get("extra_env", {})
            yield case(f"on {machine}", [*usual, *more], env, is_core=False)
        for strategy, facts in recipe.get("strategy_overrides", {}).items():
            if strategy in SINGLE_NODE:
                more = facts.get("extra_args", [])
                yield case(f"as {strategy}", [*usual, *more], {}, is_core=False)


def _case(
    recipe: Mapping[str, Any],
    variant_name: str,
    way: str,
    more: list[str],
    environment: Mapping[str, Any],
    is_core: bool = True,
) -> Case:
    model, variant = recipe["model"], recipe["variants"][variant_name]
    arguments = [*model.get("base_args", []), *variant.get("extra_args", [])]
    if isinstance(variant.get("tp"), int):
        arguments += ["--tensor-parallel-size", str(variant["tp"])]
    return Case(
        recipe["recipe"],
        f"{variant_name} {way}".strip(),
        variant.get("model_id", model["model_id"]),
        flags_of([*arguments, *more]),
        {**model.get("base_env", {}), **variant.get("extra_env", {}), **environment},
        is_core,
    )


def _modes(feature: Mapping[str, Any]) -> dict[str, list[str]]:
    return dict(feature.get("modes") or {"": feature.get("args", [])})


def kubeai_cases(path: Path) -> list[Case]:
    """Return the vLLM entries of KubeAI's catalogue."""
    return [
        Case(
            entry["name"],
            str(entry.get("resourceProfile", "")),
            entry["url"].removeprefix("hf://"),
            flags_of(entry.get("args", [])),
            entry.get("env", {}),
        )
        for entry in json.loads(path.read_text())
    ]
