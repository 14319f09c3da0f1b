"""Compiles spec.engine.speculativeDecoding to the engine's speculative configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from llmservice_operator.api.flags import listed
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.speculation import DraftModel
from llmservice_operator.desired.engine_flags import EngineFlags
from llmservice_operator.desired.flag_tables import TABLES, Flag
from llmservice_operator.desired.volumes import model_locations
from llmservice_operator.errors import InvalidSpec

METHODS: Final = {
    "Ngram": "ngram",
    "Suffix": "suffix",
    "DraftModel": "draft_model",
    "Eagle": "eagle",
    "Eagle3": "eagle3",
    "MTP": "mtp",
    "Medusa": "medusa",
    "DFlash": "dflash",
    "DSpark": "dspark",
}
"""Methods of a spec, each with the engine's name of the method."""

_METHOD_FLAG: Final = "--spec-method"
"""Flag whose values are the methods of a vLLM version. The operator does not set the flag, because
the speculative configuration names the method."""


def build_speculative_config(service: LLMService) -> str | None:
    """Return the configuration as JSON, in one canonical form; None without speculation.

    Raises InvalidSpec when the engine does not support the parallelism of the draft model.
    """
    speculation = service.spec.engine.speculative_decoding
    if speculation is None:
        return None
    config: dict[str, Any] = {
        "method": METHODS[speculation.method],
        "num_speculative_tokens": speculation.num_speculative_tokens,
    }
    if speculation.draft_model is not None:
        config |= _draft_model(service, speculation.method, speculation.draft_model)
    if speculation.ngram is not None:
        config["prompt_lookup_min"] = speculation.ngram.prompt_lookup_min
        config["prompt_lookup_max"] = speculation.ngram.prompt_lookup_max
    if speculation.schedule:
        config["num_speculative_tokens_per_batch_size"] = sorted(
            [step.min_batch_size, step.max_batch_size, step.num_speculative_tokens]
            for step in speculation.schedule
        )
    tuning = {
        "max_model_len": speculation.max_model_len,
        "draft_sample_method": _in_lower_case(speculation.draft_sampling),
        "rejection_sample_method": _in_lower_case(speculation.rejection_sampling),
        "moe_backend": speculation.moe_backend,
        "attention_backend": speculation.attention_backend,
        "enforce_eager": speculation.enforce_eager,
    }
    config |= {key: value for key, value in tuning.items() if value is not None}
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _in_lower_case(word: str | None) -> str | None:
    return None if word is None else word.lower()


def check_speculation(service: LLMService, flags: EngineFlags) -> None:
    """Raise InvalidSpec when the engine's version lacks the method of speculation, or the kernels
    of the draft's experts.
    """
    speculation = service.spec.engine.speculative_decoding
    if speculation is None:
        return
    if speculation.moe_backend is not None:
        field = "spec.engine.speculativeDecoding.moeBackend"
        flags.write("--moe-backend", speculation.moe_backend, field)
    if _has_method(flags.table, speculation.method):
        return
    versions = [version for version in TABLES if _has_method(TABLES[version], speculation.method)]
    raise InvalidSpec(
        f"vLLM {flags.version} does not have {speculation.method}: set another method, or run an "
        f"engine.version that has it: {listed(versions)}",
        "spec.engine.speculativeDecoding.method",
    )


def _has_method(table: Mapping[str, Flag], method: str) -> bool:
    return METHODS[method] in table[_METHOD_FLAG].choices


def _draft_model(service: LLMService, method: str, draft: DraftModel) -> dict[str, str | int]:
    width, whole = draft.tensor_parallel_size, max(service.spec.tensor_parallelism, 1)
    # A complete draft model runs in the same processes as the target model. Only draft layers that
    # read the hidden states of the target model may stay on one GPU.
    allowed = {whole} if method == "DraftModel" else {1, whole}
    if width is not None and width not in allowed:
        raise InvalidSpec(
            f"must be {' or '.join(map(str, sorted(allowed)))}, to match the split of the model: "
            "set that number, or remove the field",
            "spec.engine.speculativeDecoding.draftModel.tensorParallelSize",
        )
    config = {
        "model": model_locations(service)[1],
        "revision": draft.revision,
        "draft_tensor_parallel_size": width,
        "quantization": draft.quantization,
    }
    return {key: value for key, value in config.items() if value is not None}
