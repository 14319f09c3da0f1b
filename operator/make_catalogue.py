"""Writes the catalogue of `llmservice-operator new` from the recipes of the vLLM project.

    uv run python operator/make_catalogue.py RECIPES.json

RECIPES.json is a list with, for each recipe, the facts of vllm-project/recipes (Apache-2.0): model
ids, arguments, environment, features and variants. The catalogue keeps what becomes of them: a
model id and the fields of a spec. It keeps no text of the recipes. The number of GPUs is not in it,
because `new` computes it.

The program prints each model that the catalogue leaves out, with the reason.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llmservice_operator.api.extra_args import FLAG_FIELDS
from llmservice_operator.api.flags import FlagField
from llmservice_operator.api.spec import LLMService
from llmservice_operator.catalogue import FILE, service_of
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import ENGINE_VERSION

SOURCE: Final = "Derived from the facts in vllm-project/recipes, Apache-2.0"
ON_BY_DEFAULT: Final = ("tool_calling", "reasoning")
"""Features of a recipe that an entry has; the others are for the user to choose."""
COMPUTED: Final = ("--tensor-parallel-size", "--served-model-name")
"""Flags that follow from other fields: the number of GPUs, and the name of the service."""
BY_FLAG: Final[Mapping[str, FlagField]] = {it.flag.name: it for it in FLAG_FIELDS}

Flags = dict[str, str | None]
"""Flags of a command line, each with its value; None for a flag that stands alone."""


class Inexpressible(Exception):
    """The spec has no way to say an argument."""


def flags_of(arguments: list[str]) -> Flags:
    """Return the flags of a recipe's arguments, spelled with hyphens."""
    found: Flags = {}
    words = [
        word
        for argument in arguments
        for word in (argument.split(" ", 1) if argument.startswith("--") else [argument])
    ]
    last: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            last = name.replace("_", "-")
            found[last] = value if equals else None
        elif last is not None:
            found[last] = word
    return found


def set_at(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set a field of the spec by its path, such as engine.kvCache.dtype."""
    *folders, field = path.split(".")
    for folder in folders:
        spec = spec.setdefault(folder, {})
    spec[field] = value


def typed(field: FlagField, text: str | None) -> Any:
    """Return a flag's value in the form of its field."""
    if text is None:
        return True
    if field.has_words:
        words = {word.lower(): word for word in ("Auto", "BFloat16", "Float16", "Float32", "FP8")}
        words |= {engine: word for word, engine in field.flag.words.items()}
        return words.get(text, text)
    return int(text) if text.isdigit() else text


def add_flag(spec: dict[str, Any], flag: str, text: str | None) -> None:
    """Add a flag to the spec: as its field, else as an extra argument."""
    positive = flag.replace("--no-", "--", 1)
    if flag in COMPUTED or flag == "--enable-auto-tool-choice":
        return
    if flag == "--gpu-memory-utilization" and text is not None:
        set_at(spec, "engine.gpuMemoryUtilizationPercent", round(100 * float(text)))
    elif flag == "--chat-template" or flag.startswith("--speculative-config"):
        raise Inexpressible(f"{flag} needs an object of its own")
    elif flag in BY_FLAG:
        set_at(spec, BY_FLAG[flag].name, typed(BY_FLAG[flag], text))
    elif positive in BY_FLAG:
        set_at(spec, BY_FLAG[positive].name, False)
    else:
        value = "true" if text is None else text
        spec.setdefault("engine", {}).setdefault("extraArgs", []).append(f"{flag}={value}")


def entry_name(model_id: str) -> str:
    """Return the name of a model in the catalogue, which is a valid name of a service."""
    name = re.sub(r"[^a-z0-9]+", "-", model_id.rpartition("/")[2].lower()).strip("-")
    return (name if name[:1].isalpha() else f"m-{name}")[:63].strip("-")


def entries(recipe: Mapping[str, Any]) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    """Yield model id, arguments and environment of each variant of a recipe."""
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


def spec_of(model_id: str, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the spec of an entry. Raises Inexpressible."""
    spec: dict[str, Any] = {"model": {"uri": f"hf://{model_id}"}}
    for flag, text in flags_of(arguments).items():
        add_flag(spec, flag, text)
    if environment:
        spec.setdefault("engine", {})["env"] = [
            {"name": name, "value": str(value)} for name, value in sorted(environment.items())
        ]
    return spec


def complaint(spec: Mapping[str, Any]) -> str | None:
    """Return why the operator would not run the spec; None if it would."""
    body = service_of("model", spec)
    problems = LLMService.problems(body)
    if problems:
        return str(problems[0])
    try:
        build_engine_args(LLMService.parse(body), ENGINE_VERSION)
    except InvalidSpec as error:
        return str(error)
    return None


def main() -> None:
    """Write the catalogue."""
    recipes = json.loads(Path(sys.argv[1]).read_text())
    catalogue: dict[str, Any] = {}
    left_out = 0
    for recipe in (it for it in recipes if not it["omni"]):
        for model_id, arguments, environment in entries(recipe):
            name = entry_name(model_id)
            try:
                spec = spec_of(model_id, arguments, environment)
                reason = complaint(spec)
                if reason is not None and ".extraArgs[" in reason:
                    reason = f"{spec['engine']['extraArgs']}: {reason}"
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
