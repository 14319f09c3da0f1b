"""spec -> vLLM's command line: exec form, one --flag=value each, always in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmservice_operator import names
from llmservice_operator.api.accelerator import Parallelism
from llmservice_operator.api.batching import Batching
from llmservice_operator.api.engine import Engine, KvCache
from llmservice_operator.api.extra_args import FLAGS_WITH_A_FIELD
from llmservice_operator.api.fields import quantity_value
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_flags import EngineFlags
from llmservice_operator.desired.speculation import build_speculative_config
from llmservice_operator.desired.step_tokens import derived_step_tokens
from llmservice_operator.desired.volumes import model_locations
from llmservice_operator.errors import InvalidSpec

Values = Mapping[str, str | int | bool | None]
"""Flag -> what it is set to; None for not at all."""


def build_engine_args(service: LLMService, version: str) -> list[str]:
    """Return the arguments for an engine of this vLLM version.

    Raises InvalidSpec for a version that is not known, and for a field or an extra argument that
    the version does not have.
    """
    flags = EngineFlags.of(version)
    engine = service.spec.engine
    prefixes, kv_cache = engine.prefix_caching, engine.kv_cache or KvCache()
    values = {
        **_model(service),
        **_numbers(engine),
        **_parallelism(service),
        **_batching(engine.batching or Batching(), derived_step_tokens(service)),
        "--enable-prefix-caching": None if prefixes is None else prefixes.enabled,
        **_kv_cache(kv_cache),
        "--speculative-config": build_speculative_config(service),
        **_chat(engine),
    }
    args = [
        arg
        for flag, value in values.items()
        if value is not None
        for arg in flags.write(flag, value, f"spec.{FLAGS_WITH_A_FIELD[flag]}")
    ]
    args.extend(_extra_args(engine.extra_args, flags))
    # The kubelet puts a variable, a token perhaps, in place of $(NAME), and $ in place of $$.
    args = [arg.replace("$", "$$") for arg in args]
    if engine.chat_template is not None and engine.chat_template.inline is None:
        template = f"$({names.CHAT_TEMPLATE_ENV})"
        args.extend(flags.write("--chat-template", template, "spec.engine.chatTemplate"))
    return args + _served_names(service)


def _model(service: LLMService) -> Values:
    model = service.spec.model
    return {
        "--model": model_locations(service)[0],
        "--served-model-name": None if model.aliases else model.name or service.name,
        "--revision": model.revision,
        "--trust-remote-code": model.trust_remote_code or None,
    }


def _served_names(service: LLMService) -> list[str]:
    """Return the one flag of several values; each has to be an argument of its own."""
    model = service.spec.model
    if not model.aliases:
        return []
    return ["--served-model-name", model.name or service.name, *model.aliases]


def _numbers(engine: Engine) -> Values:
    percent = engine.gpu_memory_utilization_percent
    return {
        "--max-model-len": engine.max_model_len,
        "--dtype": engine.dtype,
        "--quantization": engine.quantization,
        "--gpu-memory-utilization": None if percent is None else f"0.{percent:02}",
    }


def _parallelism(service: LLMService) -> Values:
    split = service.spec.engine.parallelism or Parallelism()
    return {
        "--tensor-parallel-size": service.spec.tensor_parallelism or None,
        "--pipeline-parallel-size": split.pipeline if split.pipeline > 1 else None,
        "--data-parallel-size": split.data if split.data > 1 else None,
        "--enable-expert-parallel": split.expert or None,
    }


def _batching(batching: Batching, derived_step_tokens: int | None) -> Values:
    policy, mode = batching.scheduling_policy, batching.performance_mode
    return {
        "--max-num-seqs": batching.max_num_seqs,
        "--max-num-batched-tokens": batching.max_num_batched_tokens or derived_step_tokens,
        "--enable-chunked-prefill": batching.chunked_prefill,
        "--long-prefill-token-threshold": batching.long_prefill_token_threshold,
        "--scheduling-policy": policy and policy.lower(),
        "--performance-mode": mode and mode.lower(),
        "--max-num-queued-reqs": batching.max_queued_requests,
        "--max-num-queued-tokens": batching.max_queued_tokens,
    }


_KV_CACHE_DTYPES = {
    "Auto": "auto",
    "BFloat16": "bfloat16",
    "FP8": "fp8",
    "FP8E4M3": "fp8_e4m3",
    "FP8E5M2": "fp8_e5m2",
}


def _kv_cache(kv_cache: KvCache) -> Values:
    return {
        "--kv-cache-dtype": kv_cache.dtype and _KV_CACHE_DTYPES[kv_cache.dtype],
        "--kv-offloading-size": _gibibytes(kv_cache.offload.cpu) if kv_cache.offload else None,
    }


def _gibibytes(quantity: str) -> str:
    """Return an amount of memory as the engine takes it; 0.001 GiB more or less is no matter."""
    gibibytes = f"{(quantity_value(quantity) or 0) / 1024**3:.3f}"
    return gibibytes.rstrip("0").rstrip(".")


def _chat(engine: Engine) -> Values:
    template, tools = engine.chat_template, engine.tool_calling
    return {
        "--chat-template": None if template is None else template.inline,
        "--enable-auto-tool-choice": None if tools is None else True,
        "--tool-call-parser": None if tools is None else tools.parser,
        "--reasoning-parser": engine.reasoning_parser,
    }


def _extra_args(given: tuple[str, ...], flags: EngineFlags) -> Iterator[str]:
    seen: set[str] = set()
    for index, arg in enumerate(given):
        field = f"spec.engine.extraArgs[{index}]"
        flag, _, value = arg.partition("=")
        yield from flags.write_extra(flag, value, field)
        if flag in seen:
            raise InvalidSpec(f"{flag} is given twice: remove one of the two", field)
        seen.add(flag)
