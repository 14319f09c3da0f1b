"""Translates a command line of `vllm serve` into the fields of a spec."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final

from llmservice_operator.api.extra_args import FLAG_FIELDS
from llmservice_operator.api.flags import FlagField
from llmservice_operator.api.spec import LLMService
from llmservice_operator.catalogue import service_of
from llmservice_operator.desired.checked_values import PLUGIN_FLAGS
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.speculation import METHODS
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import ENGINE_VERSION

Flags = dict[str, Any]
"""Mapping from each flag of a command line to its value, or to None for a flag without a value."""

BY_FLAG: Final[Mapping[str, FlagField]] = {it.flag.name: it for it in FLAG_FIELDS}
_SHORT: Final = {
    "-cc": "--compilation-config",
    "-dp": "--data-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-tp": "--tensor-parallel-size",
}
SPECULATION: Final = "--speculative-config"
FOLLOWS_FROM_OTHERS: Final = ("--enable-auto-tool-choice",)
"""Flags that need no translation, because the field of another flag also sets them."""
TEMPLATE: Final = {"configMapKeyRef": {"name": "chat-templates", "key": "template.jinja"}}
"""Reference to a ConfigMap. It replaces the file of a chat template that a command line names."""
PARSERS_IMAGE: Final = "registry.example.com/parsers:1"
"""Example of a user's own image. It contains the parser plugins that a command line names."""
_WORDS: Final = (
    *("Auto", "BFloat16", "Float16", "Float32", "FP8"),
    *("Generate", "Pooling", "None", "Embed", "Classify"),
    *("BitsAndBytes", "FastSafetensors", "InstantTensor", "Mistral", "Safetensors"),
)
_METHODS: Final = {of_engine: word for word, of_engine in METHODS.items()}
_SPECULATION_FIELDS: Final = {
    "num_speculative_tokens": "numSpeculativeTokens",
    "model": "draftModel.uri",
    "revision": "draftModel.revision",
    "quantization": "draftModel.quantization",
    "draft_tensor_parallel_size": "draftModel.tensorParallelSize",
    "prompt_lookup_min": "ngram.promptLookupMin",
    "prompt_lookup_max": "ngram.promptLookupMax",
    "max_model_len": "maxModelLen",
    "moe_backend": "moeBackend",
    "attention_backend": "attentionBackend",
    "enforce_eager": "enforceEager",
    "draft_sample_method": "draftSampling",
    "rejection_sample_method": "rejectionSampling",
}


class Inexpressible(Exception):
    """An argument of a command line has no equivalent in the spec."""


def flags_of(arguments: Iterable[str]) -> Flags:
    """Return the flags of a command line by their long names, which are written with hyphens.

    A part of a structured flag, such as --speculative-config.method, becomes a member of the JSON
    object that is the flag's value.
    """
    found: Flags = {}
    words = [
        word
        for argument in arguments
        for word in (argument.split(" ", 1) if argument.startswith("--") else [argument])
    ]
    last: str | None = None
    for word in words:
        if word.startswith("--") or word.partition(".")[0].partition("=")[0] in _SHORT:
            name, equals, value = word.partition("=")
            last = _full(name)
            found[last] = value if equals else None
        elif last is not None:
            found[last] = word if found[last] is None else f"{found[last]} {word}"
    return _with_objects(found)


def _full(name: str) -> str:
    flag, dot, part = name.partition(".")
    return _SHORT.get(flag, flag).replace("_", "-") + dot + part


def _with_objects(flags: Flags) -> Flags:
    found: Flags = {}
    for name, text in flags.items():
        flag, dot, path = name.partition(".")
        if not dot:
            found[name] = text
            continue
        whole = found.setdefault(flag, {})
        found[flag] = whole = json.loads(whole) if isinstance(whole, str) else whole
        set_at(whole, path, _part(text))
    return {
        flag: json.dumps(value) if isinstance(value, dict) else value
        for flag, value in found.items()
    }


def _part(text: str | None) -> Any:
    """Return the value of a part of a structured flag, as vLLM's parser reads it."""
    if text is None:
        return True
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def set_at(spec: dict[str, Any], path: str, value: Any) -> None:
    """Set a field of the spec by its path, such as engine.kvCache.dtype."""
    *folders, field = path.split(".")
    for folder in folders:
        spec = spec.setdefault(folder, {})
    spec[field] = value


def typed(field: FlagField, text: str | None) -> Any:
    """Return the text of a flag as a value of the field's type."""
    if text is None or text == "true":
        return True
    if text == "false":
        return False
    if field.has_words:
        words = {word.lower(): word for word in _WORDS}
        words |= {engine: word for word, engine in field.flag.words.items()}
        return words.get(text, text)
    if isinstance(field.default, tuple):
        return text.split()
    if text.startswith("{"):
        return json.loads(text)
    return int(text) if text.isdigit() else text


def add_flag(spec: dict[str, Any], flag: str, text: str | None) -> None:
    """Set the field of a flag in the spec, or add an extra argument if the flag has no field.

    Raises Inexpressible for a speculative configuration that the fields cannot express.
    """
    positive = flag.replace("--no-", "--", 1)
    if flag in FOLLOWS_FROM_OTHERS:
        return
    if flag == "--gpu-memory-utilization" and text is not None:
        set_at(spec, "engine.gpuMemoryUtilizationPercent", round(100 * float(text)))
    elif flag == "--served-model-name" and text is not None:
        name, *aliases = shlex.split(text)
        spec["model"] |= {"name": name, **({"aliases": aliases} if aliases else {})}
    elif flag == "--chat-template":
        set_at(spec, "engine.chatTemplate", TEMPLATE)
    elif flag in PLUGIN_FLAGS and text is not None:
        set_at(spec, "engine.image", PARSERS_IMAGE)
        add_argument(spec, f"{flag}=/opt/parsers/{text.rpartition('/')[2]}")
    elif flag == "--kv-offloading-size" and text is not None:
        set_at(spec, BY_FLAG[flag].name, f"{text}Gi")
    elif flag == SPECULATION and text is not None:
        set_at(spec, BY_FLAG[flag].name, _speculation(spec, json.loads(text)))
    elif flag in BY_FLAG and _has_no_word(BY_FLAG[flag], text):
        add_argument(spec, f"{flag}={text}")
    elif flag in BY_FLAG:
        set_at(spec, BY_FLAG[flag].name, typed(BY_FLAG[flag], text))
    elif positive in BY_FLAG:
        set_at(spec, BY_FLAG[positive].name, False)
    else:
        add_argument(spec, f"{positive}=false" if positive != flag else f"{flag}={text or 'true'}")


def _has_no_word(field: FlagField, text: str | None) -> bool:
    """Return whether the field cannot express the value, although extraArgs accepts the flag."""
    return field.has_words and field.flag.accepted_in_extra_args and typed(field, text) == text


def add_argument(spec: dict[str, Any], argument: str) -> None:
    """Add an argument to spec.engine.extraArgs."""
    spec.setdefault("engine", {}).setdefault("extraArgs", []).append(argument)


def speculative_method(config: Mapping[str, Any]) -> str:
    """Return the method that vLLM chooses for a speculative configuration."""
    method = str(config.get("method") or "draft_model")
    return "mtp" if method.endswith("_mtp") else method


def _speculation(spec: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    method = speculative_method(config)
    if method not in _METHODS:
        raise Inexpressible(f"{SPECULATION} has the method {method}, which has no field")
    found: dict[str, Any] = {"method": _METHODS[method]}
    for key, value in config.items():
        if key == "method":
            continue
        if key not in _SPECULATION_FIELDS:
            raise Inexpressible(f"{SPECULATION} sets {key}, which has no field")
        if key == "model":
            value = f"hf://{value}"
            if method == "mtp" and value == spec["model"]["uri"]:
                continue  # the default: MTP uses layers of the model itself
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if key in ("draft_sample_method", "rejection_sample_method"):
            value = str(value).capitalize()
        set_at(found, _SPECULATION_FIELDS[key], value)
    return found


def spec_of(model_id: str, flags: Flags, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a service with this model, these flags and this environment.

    Raises Inexpressible for an argument that has no equivalent in the spec.
    """
    spec: dict[str, Any] = {"model": {"uri": f"hf://{model_id}"}}
    for flag, text in flags.items():
        add_flag(spec, flag, text)
    if environment:
        spec.setdefault("engine", {})["env"] = [
            {"name": name, "value": str(value)} for name, value in sorted(environment.items())
        ]
    return spec


def problems_of(body: Mapping[str, Any]) -> list[InvalidSpec]:
    """Return the reasons why the operator would refuse an LLMService, or an empty list."""
    if problems := LLMService.problems(body):
        return problems
    try:
        build_engine_args(LLMService.parse(body), ENGINE_VERSION)
    except InvalidSpec as error:
        return [error]
    return []


def refusals(spec: Mapping[str, Any]) -> list[str]:
    """Return the reasons why the operator would refuse the spec, or an empty list."""
    problems = problems_of(service_of("model", spec))
    return [_with_argument(spec, str(problem)) for problem in problems]


def _with_argument(spec: Mapping[str, Any], problem: str) -> str:
    """Return the text of a problem, in which the index of an argument or variable is replaced by
    its name.
    """
    place = re.match(r"spec\.engine\.(extraArgs|env)\[([0-9]+)\](\.name)?", problem)
    if place is None:
        return problem
    item = spec["engine"][place[1]][int(place[2])]
    said = item if isinstance(item, str) else item["name"]
    return f"{said.partition('=')[0]}{problem[place.end() :]}"
