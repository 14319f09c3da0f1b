"""Writes the catalogue of `llmservice-operator new` from the recipes of the vLLM project.

    uv run python operator/make_catalogue.py RECIPES.json

RECIPES.json is a list with one object for each recipe of vllm-project/recipes (Apache-2.0). The
object contains the facts of the recipe: model ids, arguments, environment, features and variants.
The catalogue contains only model ids and the fields of a spec that follow from these facts. It
contains no text of the recipes and no number of GPUs, because `new` computes that number.

The program prints each model that the catalogue leaves out, with the reason.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llmservice_operator.catalogue import FILE
from translation import Flags, Inexpressible, flags_of, refusals, spec_of

SOURCE: Final = "Derived from the facts in vllm-project/recipes, Apache-2.0"
ON_BY_DEFAULT: Final = ("tool_calling", "reasoning")
"""Features that an entry enables, unless the recipe makes them optional. Users can enable the other
features."""
COMPUTED: Final = ("--tensor-parallel-size", "--served-model-name")
"""Flags that an entry omits, because other fields determine them: the number of GPUs, and the name
of the service."""
BOUND_TO_A_PLACE: Final = ("--chat-template",)
"""Flags that need an object in the user's cluster. The catalogue leaves out a model with such a
flag, because it cannot know the name of the object."""


def entry_name(model_id: str) -> str:
    """Return the catalogue's name for a model. The name is also a valid name for a service."""
    name = re.sub(r"[^a-z0-9]+", "-", model_id.rpartition("/")[2].lower()).strip("-")
    return (name if name[:1].isalpha() else f"m-{name}")[:63].strip("-")


def entries(recipe: Mapping[str, Any]) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    """Yield the model id, the arguments and the environment of each variant of a recipe."""
    model = recipe["model"]
    features = recipe.get("features", {})
    common = list(model.get("base_args", []))
    for feature in ON_BY_DEFAULT:
        if feature not in recipe.get("opt_in_features", []):
            common += features.get(feature, {}).get("args", [])
    for variant in recipe["variants"].values():
        yield (
            variant.get("model_id", model["model_id"]),
            common + variant.get("extra_args", []),
            {**model.get("base_env", {}), **variant.get("extra_env", {})},
        )


def entry_flags(arguments: list[str]) -> Flags:
    """Return the flags that an entry of the catalogue has.

    Raises Inexpressible for a flag that needs an object in the user's cluster.
    """
    flags = {name: text for name, text in flags_of(arguments).items() if name not in COMPUTED}
    for flag in BOUND_TO_A_PLACE:
        if flag in flags:
            raise Inexpressible(f"{flag} needs an object of its own")
    return flags


def main() -> None:
    """Write the catalogue, and print each model that it leaves out."""
    recipes = json.loads(Path(sys.argv[1]).read_text())
    catalogue: dict[str, Any] = {}
    left_out = 0
    for recipe in (it for it in recipes if not it["omni"]):
        for model_id, arguments, environment in entries(recipe):
            name = entry_name(model_id)
            try:
                spec = spec_of(model_id, entry_flags(arguments), environment)
                reason = next(iter(refusals(spec)), None)
            except Inexpressible as error:
                reason = str(error)
            if reason is not None:
                left_out += 1
                print(f"left out: {model_id}: {reason}")
            else:
                catalogue.setdefault(name, spec)
    content = {"source": SOURCE, "models": dict(sorted(catalogue.items()))}
    FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(catalogue)} models, {left_out} left out")


if __name__ == "__main__":
    main()
