from typing import Any

import pytest

from core_support import a_service
from llmservice_operator.api.engine import FLAGS_WITH_A_FIELD, REFUSED_FLAGS
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.engine_flags import ALLOWED_FLAGS, SWITCH_FLAGS, VALUE_FLAGS
from llmservice_operator.errors import InvalidSpec

CPU = {"accelerator": {"type": "cpu"}}
HUB = {"uri": "hf://org/model"}

COMPILED = {
    "a minimal spec": (
        {},
        ["--model=org/model", "--served-model-name=qwen", "--tensor-parallel-size=1"],
    ),
    "a CPU has no tensor parallelism": (CPU, ["--model=org/model", "--served-model-name=qwen"]),
    "a served name and a revision": (
        {**CPU, "model": {**HUB, "name": "chat", "revision": "abc"}},
        ["--model=org/model", "--served-model-name=chat", "--revision=abc"],
    ),
    "a folder of a claim": (
        {**CPU, "model": {"uri": "pvc://claim/a/b", "name": "m"}},
        ["--model=/models/a/b", "--served-model-name=m"],
    ),
    "the root of a claim": (
        {**CPU, "model": {"uri": "pvc://claim", "name": "m"}},
        ["--model=/models", "--served-model-name=m"],
    ),
    "every engine field, in this order, extra arguments last": (
        {
            "accelerator": {"count": 2},
            "engine": {
                "extraArgs": ["--seed=7", "--max-num-seqs=4"],
                "dtype": "bfloat16",
                "maxModelLen": 100,
            },
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--max-model-len=100",
            "--dtype=bfloat16",
            "--tensor-parallel-size=2",
            "--seed=7",
            "--max-num-seqs=4",
        ],
    ),
    "switches become the engine's own form": (
        {
            **CPU,
            "engine": {"extraArgs": ["--enforce-eager=true", "--enable-prefix-caching=false"]},
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--enforce-eager",
            "--no-enable-prefix-caching",
        ],
    ),
    "a variable in an argument is not expanded by the kubelet": (
        {**CPU, "engine": {"extraArgs": ["--response-role=$(HF_TOKEN)"]}},
        ["--model=org/model", "--served-model-name=qwen", "--response-role=$$(HF_TOKEN)"],
    ),
}


@pytest.mark.parametrize(("spec", "args"), COMPILED.values(), ids=COMPILED.keys())
def test_a_spec_is_compiled_to_the_engines_arguments(spec: dict[str, Any], args: list[str]) -> None:
    assert build_engine_args(a_service(spec)) == args


@pytest.mark.parametrize(
    ("args", "field", "message"),
    [
        (
            ["--seed=1", "--max-num-seq=4"],
            "spec.engine.extraArgs[1]",
            "--max-num-seq is not accepted here: did you mean --max-num-seqs?",
        ),
        (
            ["--enforce-eager=yes"],
            "spec.engine.extraArgs[0]",
            "--enforce-eager is a switch: write --enforce-eager=true or --enforce-eager=false",
        ),
        (
            ["--seed=1", "--seed=2"],
            "spec.engine.extraArgs[1]",
            "--seed is given twice: remove one of the two",
        ),
    ],
)
def test_an_extra_argument_is_refused_with_what_to_write_instead(
    args: list[str], field: str, message: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        build_engine_args(a_service({"engine": {"extraArgs": args}}))
    assert (refused.value.field, refused.value.message) == (field, message)


def test_an_argument_like_no_other_is_refused_with_all_that_are_accepted() -> None:
    with pytest.raises(InvalidSpec) as refused:
        build_engine_args(a_service({"engine": {"extraArgs": ["--zzzzzz=1"]}}))
    assert refused.value.message.startswith("--zzzzzz is not accepted here: remove it; accepted")
    assert all(flag in refused.value.message for flag in ALLOWED_FLAGS)


@pytest.mark.parametrize(
    "arg",
    ["--trust-remote=true", "--hf-overrides.auto-map=x", "--confi=x", "--load-format=pt"],
)
def test_abbreviated_nested_and_unlisted_flags_do_not_pass(arg: str) -> None:
    with pytest.raises(InvalidSpec):
        build_engine_args(a_service({"engine": {"extraArgs": [arg]}}))


def test_no_accepted_flag_is_one_that_the_operator_sets_or_refuses() -> None:
    assert not ALLOWED_FLAGS & {*FLAGS_WITH_A_FIELD, *REFUSED_FLAGS}
    assert not VALUE_FLAGS & SWITCH_FLAGS
