"""Tests that the pinned vLLM configures an engine from the arguments of specs, with tiny models."""

from typing import Any, Final

import pytest

from engine_asking import Ask
from engine_stand_ins import StandIns
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import ENGINE_VERSION
from llmservice_operator.workload import resolve_pin
from operator_support.examples import EXAMPLE_SPECS
from operator_support.services import SETTINGS, a_service
from random_specs import LIKELY, Spec, many_valid_specs

pytest_plugins = ("engine_fixtures",)

RANDOM_SPECS: Final = 200
ACCEPTED_FLAGS: Final = LIKELY["spec.engine.extraArgs[]"]

DRAFT: Final = "spec.engine.speculativeDecoding"

KNOWN_QUANTIZATIONS: Final = (None, "fp8", "awq")
"""Quantizations that the random specs here may have. Only vLLM knows which others are valid."""

KNOWN_KERNELS: Final = {None, *LIKELY[f"{DRAFT}.moeBackend"], *LIKELY[f"{DRAFT}.attentionBackend"]}
"""Backends that the random specs here may have. Only vLLM knows which others are valid."""

KNOWN_PARSERS: Final = {
    None,
    *LIKELY["spec.engine.reasoningParser"],
    *LIKELY["spec.engine.toolCalling.parser"],
}
"""Parsers of the standard image. A service with a custom image may name others."""

NO_DSPARK: Final = (
    "ValidationError: : Value error, Model Runner V1 does not support: dspark speculative decoding"
)

HINDRANCES: Final = {
    NO_DSPARK: "the method is for the model runner that GPUs have",
    "ImportError: Arctic Inference is required for suffix decoding. Install via "
    "`pip install arctic-inference==0.1.1`.": "the environment has it for the test that runs it",
    "RuntimeError: DeepSeekR1ReasoningParser reasoning parser could not locate think start/end "
    "tokens in the tokenizer!": "the tiny model does not think",
    "ValidationError: : Value error, Quantization method specified in the model config (awq) does "
    "not match the quantization method specified in the `quantization` argument (awq_marlin).": (
        "Marlin's kernels are for GPUs, where vLLM takes them for AWQ"
    ),
    "ValidationError: : Value error, torch.float32 is not supported for quantization method awq. "
    "Supported dtypes: [torch.float16, torch.bfloat16]": (
        "no model has both, and vLLM says so when it starts"
    ),
    "ValidationError: : Value error, torch.float32 is not supported for quantization method fp8. "
    "Supported dtypes: [torch.bfloat16, torch.float16]": (
        "no model has both, and vLLM says so when it starts"
    ),
    "ValidationError: : Value error, This model does not support `--runner pooling`. You can pass "
    "`--convert <embed|classify> to adapt it into a pooling model.": (
        "the tiny model makes text, and vLLM says what to set"
    ),
    "ValidationError: : Value error, Expert parallelism load balancing is only supported on CUDA "
    "devices or ROCm devices or XPU devices now.": "--enable-eplb is for GPUs",
    "ValidationError: : Value error, Model Runner V1 does not support: batch-sharded sampling": (
        "--enable-batch-sharded-sampling is for the model runner that GPUs have"
    ),
    "ValidationError: : Value error, Currently, async scheduling is only supported with EAGLE/MTP/"
    "Draft Model/NGram GPU/DSpark/DFlash kind of speculative decoding": (
        "--async-scheduling=true suits some methods of speculation only, and vLLM says which"
    ),
    "ValidationError: : Value error, sampling distribution replay requires Model Runner V2": (
        "--return-sampling-mask is for the model runner that GPUs have"
    ),
    "ValidationError: : Value error, --use-replayssm is not supported for architecture "
    "'LlamaForCausalLM'": "the flag is for models with state-space layers",
    "ValidationError: : Value error, Stochastic rounding for Mamba cache requires the SSM cache to "
    "be float16. Please set it explicitly, by specifying `--mamba-ssm-cache-dtype float16`, or "
    "disable stochastic rounding by not specifying `--enable-mamba-cache-stochastic-rounding`.": (
        "it wants another flag beside it"
    ),
    "ValueError: Mamba SSU algorithm selection is only supported with the FlashInfer backend. "
    "Please set `--mamba-backend flashinfer`, or omit `--mamba-ssu-algorithm`.": (
        "it wants another flag beside it"
    ),
    "TypeError: Error: --enable-log-outputs requires --enable-log-requests": (
        "it wants another flag beside it"
    ),
    "ValidationError: : Value error, --per-request-spec-decode-metrics requires speculative "
    "decoding to be enabled (via --speculative-config).": "it wants speculation beside it",
}
"""Errors that this test accepts, each with the reason. Every reason was reviewed."""


LEAVES_TRACES: Final = "--enable-return-routed-experts"
"""Flag that also changes the configuration of every later engine in the process."""


OTHER_FORMAT: Final = "--config-format=mistral"
"""Argument that does not fit the stand-ins, which have Hugging Face's format."""


def compiled(spec: Spec) -> list[str]:
    service = a_service(spec)
    return build_engine_args(service, resolve_pin(service, None, SETTINGS).version)


def is_for_the_pinned_version(spec: Spec) -> bool:
    try:
        compiled(spec)
        version = resolve_pin(a_service(spec), None, SETTINGS).version
    except InvalidSpec:
        return False
    engine = spec.get("engine", {})
    speculation = engine.get("speculativeDecoding", {})
    draft = speculation.get("draftModel", {})
    quantizations = {engine.get("quantization"), draft.get("quantization")}
    kernels = {speculation.get("moeBackend"), speculation.get("attentionBackend")}
    return (
        version == ENGINE_VERSION
        and quantizations <= {*KNOWN_QUANTIZATIONS}
        and kernels <= KNOWN_KERNELS
        and {engine.get("reasoningParser"), engine.get("toolCalling", {}).get("parser")}
        <= KNOWN_PARSERS
        and {*engine.get("logitsProcessors", ())} <= {*LIKELY["spec.engine.logitsProcessors[]"]}
        and not any(arg.startswith(LEAVES_TRACES) for arg in engine.get("extraArgs", ()))
        and OTHER_FORMAT not in engine.get("extraArgs", ())
    )


@pytest.fixture(scope="module")
def arguments() -> dict[str, list[str]]:
    """The compiled arguments of every example and of random specs."""
    random = many_valid_specs(RANDOM_SPECS, is_for_the_pinned_version)
    specs = EXAMPLE_SPECS | {f"random {number}": spec for number, spec in enumerate(random)}
    return {name: compiled(spec) for name, spec in specs.items()}


def test_the_parser_takes_every_example_and_random_specs(
    ask: Ask, arguments: dict[str, list[str]]
) -> None:
    said = zip(arguments.items(), ask("parse", list(arguments.values())), strict=True)
    assert [(name, args, complaint) for (name, args), complaint in said if complaint] == []


def test_the_engine_configures_itself_as_every_example_and_random_specs_say(
    ask: Ask, arguments: dict[str, list[str]], stand_ins: StandIns
) -> None:
    asked = {name: stand_ins.arguments(args) for name, args in arguments.items()}
    said = dict(zip(asked, ask("configure", list(asked.values())), strict=True))
    unexpected = {
        name: (complaint, asked[name])
        for name, complaint in said.items()
        if complaint and complaint not in HINDRANCES
    }
    assert unexpected == {}
    assert len([complaint for complaint in said.values() if complaint]) < len(said) / 4


def test_the_engine_configures_itself_by_every_accepted_flag(ask: Ask, stand_ins: StandIns) -> None:
    flags = [flag for flag in ACCEPTED_FLAGS if not flag.startswith(LEAVES_TRACES)]
    asked = [stand_ins.arguments(compiled({"engine": {"extraArgs": [flag]}})) for flag in flags]
    said = dict(zip(flags, ask("configure", asked), strict=True))
    assert len(said) > 100
    unexpected = {flag: each for flag, each in said.items() if each and each not in HINDRANCES}
    assert unexpected == {}


HEAD: Final = {"uri": "hf://org/head"}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("Ngram", {}),
        ("DraftModel", {"draftModel": HEAD}),
        ("Eagle", {"draftModel": HEAD}),
        ("Eagle3", {"draftModel": HEAD}),
        ("MTP", {}),
        ("Medusa", {"draftModel": HEAD}),
        ("DFlash", {"draftModel": HEAD}),
        ("DSpark", {"draftModel": HEAD}),
        ("MTP", {"moeBackend": "triton", "attentionBackend": "FLASH_ATTN", "enforceEager": True}),
        ("Eagle", {"draftModel": HEAD, "maxModelLen": 512, "draftSampling": "Greedy"}),
    ],
)
def test_the_engine_configures_itself_for_a_method_of_speculation(
    ask: Ask, stand_ins: StandIns, method: str, more: dict[str, Any]
) -> None:
    speculation = {"method": method, "numSpeculativeTokens": 1, **more}
    args = compiled({"engine": {"speculativeDecoding": speculation}})
    hindrance = NO_DSPARK if method == "DSpark" else None
    assert ask("configure", [stand_ins.arguments(args)]) == [hindrance]
