"""The fields of spec.engine, apart from extraArgs and env.

A separate module avoids a circular import: extra_args.py imports these fields, to refuse the flags
that the fields set, and engine.py imports extra_args.py. The engine gets its flags in the order in
which the fields are declared here, so moving a field restarts every service that sets it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import BeforeValidator, Field, JsonValue, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from llmservice_operator.api.accelerator import Parallelism
from llmservice_operator.api.batching import Batching, PrefixCaching
from llmservice_operator.api.chat import ChatTemplate, ParserName, ToolCalling
from llmservice_operator.api.fields import (
    ATOMIC,
    Fields,
    Quantity,
    Rule,
    ValueRule,
    at_least,
    keyed_by,
    matches,
)
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.loading import Loading
from llmservice_operator.api.model import Quantization
from llmservice_operator.api.references import ImagePullSecret
from llmservice_operator.api.speculation import SpeculativeDecoding

_DtypeWord = Literal["Auto", "BFloat16", "Float16", "Float32"]
_BY_EARLIER_SPELLING: Final = {word.lower(): word for word in get_args(_DtypeWord)}


def _in_camel_case(value: JsonValue) -> JsonValue:
    return _BY_EARLIER_SPELLING.get(value, value) if isinstance(value, str) else value


Dtype = Annotated[
    _DtypeWord,
    BeforeValidator(_in_camel_case),
    WithJsonSchema({"type": "string", "enum": [*get_args(_DtypeWord), *_BY_EARLIER_SPELLING]}),
]
"""Number format, in the spelling of kvCache.dtype. A stored service may contain the engine's own
words, in lower case."""


AUTO: Final = "Auto"
_LONGEST: Final = 100_000_000
_LENGTH_MESSAGE: Final = f"must be a number of tokens from 1 to {_LONGEST}, without quotes, or Auto"


def _length(value: JsonValue) -> JsonValue:
    """Return a length in the spelling of this API.

    Raises PydanticCustomError for a value that is neither a whole number nor a text.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("rule", "{message}", {"message": _LENGTH_MESSAGE})
    return AUTO if value == "auto" else value


ModelLen = Annotated[
    StrictInt | str,
    BeforeValidator(_length),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": len(AUTO),
        }
    ),
    ValueRule(
        cel=f"type(self) == int ? self >= 1 && self <= {_LONGEST} : self.matches('^(Auto|auto)$')",
        message=_LENGTH_MESSAGE,
        holds=lambda value: value == AUTO if isinstance(value, str) else 1 <= value <= _LONGEST,
    ),
]
"""Number of tokens, or Auto. The engine's own spelling, auto, is accepted as well."""

_HAS_NO_LENGTH: Final = "!has(self.maxModelLen) || type(self.maxModelLen) != int"


MediaDomain = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        "[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
        "must be a host in lower case without a scheme or port, such as images.example.com",
    ),
]

LogitsProcessor = Annotated[
    str,
    Field(min_length=3, max_length=256),
    matches(
        "[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*",
        "must have the form MODULE:CLASS, such as "
        "vllm.model_executor.models.deepseek_ocr:NGramPerReqLogitsProcessor",
    ),
]


class KvCacheOffload(Fields):
    cpu: Annotated[
        Quantity,
        EngineFlag("--kv-offloading-size", is_computed=True),
        at_least("1Gi", "must be at least 1Gi: a smaller cache has no effect"),
    ]
    """Main memory of each replica for KV cache that does not fit on the GPUs, such as 64Gi. Memory
    requests and limits that spec.resources sets must include this amount."""


class KvCache(Fields):
    dtype: (
        Annotated[
            Literal["Auto", "BFloat16", "FP8", "FP8E4M3", "FP8E5M2"],
            EngineFlag("--kv-cache-dtype", words={"FP8E4M3": "fp8_e4m3", "FP8E5M2": "fp8_e5m2"}),
        ]
        | None
    ) = None
    """Number format of the KV cache. With an FP8 format, the cache has room for twice as many
    tokens as with a 16-bit format, at a small loss of precision. Default: Auto, the model's own
    format."""
    offload: KvCacheOffload | None = None
    """Second level of the KV cache, in main memory. KV cache that was evicted from GPU memory can
    be loaded back from main memory."""


class EngineFields(Fields):
    image: (
        Annotated[
            str,
            Field(min_length=1, max_length=512),
            matches(
                "[A-Za-z0-9][A-Za-z0-9._:/@-]*",
                "must be an image reference, such as registry.example.com/llmservice/server:0.1.0",
            ),
        ]
        | None
    ) = None
    """Image of the model servers. Default: the operator's image for the accelerator. Once a replica
    has been ready with a default image, the service keeps this image when the operator is
    upgraded."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """Pull policy of the image. Default: Always for the tag latest and for an image with neither
    tag nor digest, IfNotPresent otherwise."""
    image_pull_secrets: Annotated[
        tuple[ImagePullSecret, ...],
        Field(
            max_length=8,
            json_schema_extra=keyed_by("name"),
        ),
    ] = ()
    """Secrets with the credentials for a private image registry."""
    version: (
        Annotated[
            str,
            Field(min_length=1, max_length=32),
            matches("[0-9]+[.][0-9]+[.][0-9]+", "must be a vLLM version, such as 0.32.0"),
        ]
        | None
    ) = None
    """vLLM version in the image. It decides which flags the engine accepts. If `image` is unset and
    the service keeps an image with another vLLM version, setting `version` to the operator's vLLM
    version upgrades the service to the operator's current image. Default: for a default image, the
    version of that image; for another image, the operator's vLLM version at the time when `image`
    was set."""
    max_model_len: Annotated[ModelLen, EngineFlag("--max-model-len", is_computed=True)] | None = (
        None
    )
    """Maximum length of a request in tokens, prompt and answer together. Auto: the longest request
    that the memory has room for, at most the model's own maximum. With Auto, replicas on GPUs of
    different sizes accept different lengths. Default: the model's own maximum."""
    dtype: Annotated[Dtype, EngineFlag("--dtype")] | None = None
    """Number format of weights and activations. The earlier spellings in lower case are also
    accepted. Auto means the format of the weights; if the weights are in Float32 or the
    hardware does not support their format, it means a 16-bit format. Default: Auto."""
    quantization: Annotated[Quantization, EngineFlag("--quantization")] | None = None
    """Name of the engine's quantization method for the weights, such as fp8, awq or
    compressed-tensors. Default: the model's own configuration."""
    gpu_memory_utilization_percent: (
        Annotated[
            int,
            Field(ge=1, le=99),
            EngineFlag(
                "--gpu-memory-utilization", also=("--device-memory-utilization",), is_computed=True
            ),
        ]
        | None
    ) = None
    """Percentage of each GPU's memory that the engine uses for weights and KV cache. Default: the
    engine's default, 92."""
    parallelism: Parallelism | None = None
    """Split of the model across the GPUs of a replica. Default: tensor parallelism across all GPUs
    of the replica."""
    batching: Batching | None = None
    """How many requests and tokens the engine processes at the same time."""
    prefix_caching: PrefixCaching | None = None
    """Reuse of the KV cache between prompts with a common prefix. Default: on for every model that
    supports it."""
    kv_cache: KvCache | None = None
    """Storage of the KV cache: the attention keys and values of each request."""
    speculative_decoding: (
        Annotated[
            SpeculativeDecoding,
            EngineFlag(
                "--speculative-config",
                also=("--spec-method", "--spec-model", "--spec-tokens"),
                is_computed=True,
            ),
        ]
        | None
    ) = None
    """Speculative decoding: a cheap draft proposes tokens, and the model checks them. This
    speeds up answers while few requests run, and can slow them down with full batches. The
    quality of the answers does not change. Default: off."""
    chat_template: (
        Annotated[ChatTemplate, EngineFlag("--chat-template", is_computed=True)] | None
    ) = None
    """Template that turns a chat into a single prompt. Default: the template that ships with the
    model."""
    tool_calling: (
        Annotated[ToolCalling, EngineFlag("--enable-auto-tool-choice", is_computed=True)] | None
    ) = None
    """Parsing of tool calls, so that the model can call the tools that a chat request offers.
    Default: off."""
    reasoning_parser: Annotated[ParserName, EngineFlag("--reasoning-parser")] | None = None
    """Name of the engine's parser that separates the model's reasoning from its answer, such as
    qwen3 or deepseek_r1. Default: off."""
    seed: (
        Annotated[
            int,
            Field(ge=0, le=4_294_967_295),
            EngineFlag("--seed", accepted_in_extra_args=True),
        ]
        | None
    ) = None
    """Seed of the engine's random numbers, for requests that do not set a seed. Answers are not
    reproducible even with the same seed, because they also depend on the other requests in the same
    engine step. Default: 0."""
    runner: Annotated[Literal["Auto", "Generate", "Pooling"], EngineFlag("--runner")] | None = None
    """Task of the model. Generate: the model generates text. Pooling: the model computes
    embeddings, scores or classes, on the routes of its task. Default: Auto, the task that the
    model's files specify."""
    convert: (
        Annotated[Literal["Auto", "None", "Embed", "Classify"], EngineFlag("--convert")] | None
    ) = None
    """Conversion of a model that generates text, so that it computes embeddings (Embed) or classes
    (Classify). Default: Auto."""
    allowed_media_domains: Annotated[
        tuple[MediaDomain, ...],
        Field(max_length=32, json_schema_extra=ATOMIC),
        EngineFlag("--allowed-media-domains", is_computed=True, accepted_in_extra_args=True),
    ] = ()
    """Hosts from which the server fetches the images, videos and audio files that requests refer
    to. The server never reads such files from a local path. The NetworkPolicy must also allow the
    hosts. Default: every host that the NetworkPolicy allows."""
    logits_processors: Annotated[
        tuple[LogitsProcessor, ...],
        Field(max_length=8, json_schema_extra=ATOMIC),
        EngineFlag("--logits-processors", is_computed=True),
    ] = ()
    """Logits processors: Python classes, from packages in the image, that change the
    probabilities of tokens. The names of vLLM's own classes start with `vllm.`; any other
    class requires engine.image."""
    loading: (
        Annotated[Loading, EngineFlag("--model-loader-extra-config", is_computed=True)] | None
    ) = None
    """Settings for reading the weights. Default: the engine's choice for the model's files."""

    rules: ClassVar = (
        Rule(
            "logitsProcessors",
            cel="!has(self.logitsProcessors) || has(self.image) || "
            "self.logitsProcessors.all(each, each.startsWith('vllm.'))",
            message="must start with vllm. if engine.image is unset: remove the others, or set "
            "engine.image to an image with their package",
            holds=lambda engine: (
                engine.image is not None
                or all(each.startswith("vllm.") for each in engine.logits_processors)
            ),
        ),
        Rule(
            "logitsProcessors",
            cel="!has(self.logitsProcessors) || size(self.logitsProcessors) == 0 || "
            "(!has(self.speculativeDecoding) && (!has(self.runner) || self.runner != 'Pooling'))",
            message="cannot be combined with speculativeDecoding or runner Pooling, because vLLM "
            "then does not start: remove one of the two",
            holds=lambda engine: (
                not engine.logits_processors
                or (engine.speculative_decoding is None and engine.runner != "Pooling")
            ),
        ),
        Rule(
            "convert",
            cel="!has(self.convert) || !(self.convert in ['Embed', 'Classify']) || "
            "!has(self.runner) || self.runner != 'Generate'",
            message="has no effect with runner Generate: remove it, or choose runner Pooling",
            holds=lambda engine: (
                engine.convert not in ("Embed", "Classify") or engine.runner != "Generate"
            ),
        ),
        Rule(
            "image",
            cel="!has(self.speculativeDecoding) || self.speculativeDecoding.method != 'Suffix' || "
            "has(self.image)",
            message="must be set when the method is Suffix, to an image with the Python package "
            "arctic-inference: the operator's own images do not include it",
            holds=lambda engine: (
                engine.speculative_decoding is None
                or engine.speculative_decoding.method != "Suffix"
                or engine.image is not None
            ),
        ),
        Rule(
            "speculativeDecoding.schedule",
            cel="!has(self.speculativeDecoding) || !has(self.speculativeDecoding.schedule) || "
            "size(self.speculativeDecoding.schedule) == 0 || !has(self.parallelism) || "
            "self.parallelism.data == 1",
            message="cannot be combined with engine.parallelism.data: remove one of the two",
            holds=lambda engine: (
                engine.speculative_decoding is None
                or not engine.speculative_decoding.schedule
                or engine.parallelism is None
                or engine.parallelism.data == 1
            ),
        ),
        Rule(
            "batching.maxNumBatchedTokens",
            cel=f"{_HAS_NO_LENGTH} || !has(self.batching) || "
            "!has(self.batching.maxNumBatchedTokens) || !has(self.batching.chunkedPrefill) || "
            "self.batching.chunkedPrefill || "
            "self.batching.maxNumBatchedTokens >= self.maxModelLen",
            message="must be at least engine.maxModelLen when chunkedPrefill is false: raise "
            "it, lower maxModelLen or remove chunkedPrefill",
            holds=lambda engine: (
                engine.fixed_len is None
                or engine.batching is None
                or engine.batching.max_num_batched_tokens is None
                or engine.batching.chunked_prefill is not False
                or engine.batching.max_num_batched_tokens >= engine.fixed_len
            ),
        ),
        Rule(
            "maxModelLen",
            cel=f"!({_HAS_NO_LENGTH}) || !has(self.batching) || "
            "!has(self.batching.maxNumBatchedTokens) || !has(self.batching.chunkedPrefill) || "
            "self.batching.chunkedPrefill",
            message="must be a number, at most batching.maxNumBatchedTokens, when chunkedPrefill "
            "is false: a whole prompt must fit into one step, and the model may accept "
            "longer prompts",
            holds=lambda engine: (
                engine.fixed_len is not None
                or engine.batching is None
                or engine.batching.max_num_batched_tokens is None
                or engine.batching.chunked_prefill is not False
            ),
        ),
        Rule(
            "batching.longPrefillTokenThreshold",
            cel=f"{_HAS_NO_LENGTH} || !has(self.batching) || "
            "!has(self.batching.longPrefillTokenThreshold) || "
            "self.batching.longPrefillTokenThreshold <= self.maxModelLen",
            message="must be at most engine.maxModelLen: lower it",
            holds=lambda engine: (
                engine.fixed_len is None
                or engine.batching is None
                or engine.batching.long_prefill_token_threshold is None
                or engine.batching.long_prefill_token_threshold <= engine.fixed_len
            ),
        ),
    )

    @property
    def fixed_len(self) -> int | None:
        """Maximum length of a request in tokens, if the spec sets a number."""
        return self.max_model_len if isinstance(self.max_model_len, int) else None
