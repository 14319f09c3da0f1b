"""Compiles the spec to vLLM's command line.

The arguments are in exec form and always in the same order. A flag with one value is one argument,
--flag=value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from llmservice_operator import names
from llmservice_operator.api.extra_args import FLAG_FIELDS
from llmservice_operator.api.fields import GIB, quantity_value
from llmservice_operator.api.flags import FlagField
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_flags import EngineFlags
from llmservice_operator.desired.extra_args import ExtraFlag, read_extra_args
from llmservice_operator.desired.flag_tables import TABLES
from llmservice_operator.desired.speculation import build_speculative_config, check_speculation
from llmservice_operator.desired.step_tokens import sequences_of, step_tokens_of
from llmservice_operator.desired.volumes import model_locations
from llmservice_operator.errors import InvalidSpec

Value = str | int | bool | list[str] | None
"""Value of a flag, or its values; None if the flag is not set."""


def build_engine_args(service: LLMService, version: str) -> list[str]:
    """Return the arguments for an engine of this vLLM version.

    Raises InvalidSpec in these cases:

    - The version is unknown, or it lacks a flag, a value or a method of speculation that the spec
      requires.
    - An extra argument is refused, is given twice, or differs from the field of the same flag.
    """
    spec, engine = service.spec, service.spec.engine
    flags = EngineFlags.of(version, has_own_image=engine.image is not None)
    check_speculation(service, flags)
    extra = read_extra_args(spec)
    by_extra_args = {each.flag for each in extra if not each.is_left_to_the_field(spec)}
    args = [
        arg
        for field in FLAG_FIELDS
        if field.flag.name not in by_extra_args
        for arg in _write(field, service, flags)
    ]
    args.extend(_extra_args(extra, service, flags))
    # The kubelet replaces $(NAME) with the value of a variable, which may be a token, and $$ with
    # $.
    args = [arg.replace("$", "$$") for arg in args]
    if engine.chat_template is not None and engine.chat_template.inline is None:
        template = f"$({names.CHAT_TEMPLATE_ENV})"
        args.extend(flags.write("--chat-template", template, "spec.engine.chatTemplate"))
    return args + _served_names(service)


def _write(field: FlagField, service: LLMService, flags: EngineFlags) -> list[str]:
    flag = field.flag
    value = COMPUTED[flag.name](service) if flag.is_computed else field.value(service.spec)
    return [] if value is None else flags.write(flag.name, value, f"spec.{field.name}")


def _extra_args(
    extra: Iterable[ExtraFlag], service: LLMService, flags: EngineFlags
) -> Iterator[str]:
    seen: set[str] = set()
    for each in extra:
        written = flags.write_extra(each.flag, each.value, each.place)
        if each.flag in seen:
            raise InvalidSpec(f"{each.flag} is given twice: remove one of the two", each.place)
        seen.add(each.flag)
        if each.field is None or not each.is_left_to_the_field(service.spec):
            yield from written
        elif written != _write(each.field, service, flags):
            raise InvalidSpec(
                f"differs from {each.place}, {each.flag}={each.value}: remove that argument",
                f"spec.{each.field.name}",
            )


def _served_name(service: LLMService) -> Value:
    model = service.spec.model
    return None if model.aliases else model.name or service.name


def _served_names(service: LLMService) -> list[str]:
    """Return the flag of a model with several names. Each name has to be a separate argument."""
    model = service.spec.model
    if not model.aliases:
        return []
    return ["--served-model-name", model.name or service.name, *model.aliases]


def _model_len(service: LLMService) -> Value:
    length = service.spec.engine.max_model_len
    return length.lower() if isinstance(length, str) else length


def _gpu_memory(service: LLMService) -> Value:
    percent = service.spec.engine.gpu_memory_utilization_percent
    return None if percent is None else f"0.{percent:02}"


def _offloaded(service: LLMService) -> Value:
    """Return the memory for the offloaded KV cache in GiB, rounded to 0.001 GiB."""
    kv_cache = service.spec.engine.kv_cache
    if kv_cache is None or kv_cache.offload is None:
        return None
    gibibytes = f"{(quantity_value(kv_cache.offload.cpu) or 0) / GIB:.3f}"
    return gibibytes.rstrip("0").rstrip(".")


def _inline_template(service: LLMService) -> Value:
    template = service.spec.engine.chat_template
    return None if template is None else template.inline


def _loader_options(service: LLMService) -> Value:
    loading = service.spec.engine.loading
    if loading is None:
        return None
    limit = loading.memory_limit
    options = {
        "concurrency": loading.concurrency,
        "memory_limit": None if limit is None else int(quantity_value(limit) or 0),
        "distributed": loading.distributed,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    return json.dumps(chosen, separators=(",", ":")) if chosen else None


COMPUTED: Final[Mapping[str, Callable[[LLMService], Value]]] = {
    "--model": lambda service: model_locations(service)[0],
    "--served-model-name": _served_name,
    "--enable-lora": lambda service: service.spec.model.takes_adapters or None,
    "--max-loras": lambda service: service.spec.model.adapter_slots,
    "--max-lora-rank": lambda service: service.spec.model.adapter_rank,
    "--max-model-len": _model_len,
    "--gpu-memory-utilization": _gpu_memory,
    "--tensor-parallel-size": lambda service: service.spec.tensor_parallelism or None,
    "--max-num-seqs": sequences_of,
    "--max-num-batched-tokens": step_tokens_of,
    "--kv-offloading-size": _offloaded,
    "--speculative-config": build_speculative_config,
    "--chat-template": _inline_template,
    "--allowed-media-domains": lambda service: [*service.spec.engine.allowed_media_domains] or None,
    "--logits-processors": lambda service: [*service.spec.engine.logits_processors] or None,
    "--model-loader-extra-config": _loader_options,
    "--enable-auto-tool-choice": lambda service: True if service.spec.engine.tool_calling else None,
}
"""Functions that compute the values of the flags with is_computed=True."""


def check_flags(fields: Iterable[FlagField], computed: Iterable[str]) -> None:
    """Raise TypeError, which names the flag, if the value of a field cannot be written.

    The check runs when this module is imported, so that an incomplete declaration fails before any
    service is compiled.
    """
    named = {field.flag.name: field for field in fields}
    declared = {name for name, field in named.items() if field.flag.is_computed}
    for flag in sorted(declared.difference(computed)):
        raise TypeError(
            f"spec.{named[flag].name} declares {flag} with is_computed=True: add the function that "
            "computes it to COMPUTED in desired/engine_args.py"
        )
    for flag in sorted(set(computed) - declared):
        raise TypeError(
            f"COMPUTED in desired/engine_args.py has {flag}, which no field declares with "
            "is_computed=True: declare it, or remove the function"
        )
    for flag, field in named.items():
        if not any(flag in table for table in TABLES.values()):
            raise TypeError(f"spec.{field.name} sets {flag}, which no known vLLM version has")


check_flags(FLAG_FIELDS, COMPUTED)
