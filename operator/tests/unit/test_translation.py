"""Tests the translation of `vllm serve` command lines to the fields of a spec."""

from typing import Any

import pytest

from translation import Inexpressible, flags_of, refusals, spec_of


def translated(*arguments: str, **environment: str) -> dict[str, Any]:
    spec = spec_of("org/model", flags_of(arguments), environment)
    assert spec["model"].pop("uri") == "hf://org/model"
    return spec if spec["model"] else {"engine": spec["engine"]}


def engine(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = translated(*arguments)["engine"]
    return found


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--max-model-len", "4096"], {"maxModelLen": 4096}),
        (["--max-model-len auto"], {"maxModelLen": "auto"}),
        (["--kv-cache-dtype=fp8"], {"kvCache": {"dtype": "FP8"}}),
        (["--no-enable-prefix-caching"], {"prefixCaching": {"enabled": False}}),
        (["--gpu-memory-utilization", "0.85"], {"gpuMemoryUtilizationPercent": 85}),
        (
            ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"],
            {"toolCalling": {"parser": "hermes"}},
        ),
        (["--kv-offloading-size=8"], {"kvCache": {"offload": {"cpu": "8Gi"}}}),
        (["--enable-chunked-prefill=false"], {"batching": {"chunkedPrefill": False}}),
        (["-tp", "8"], {"parallelism": {"tensor": 8}}),
        (["--async-scheduling"], {"extraArgs": ["--async-scheduling=true"]}),
        (["--no-async-scheduling"], {"extraArgs": ["--async-scheduling=false"]}),
        (
            ["--limit-mm-per-prompt.video", "0"],
            {"extraArgs": ['--limit-mm-per-prompt={"video": 0}']},
        ),
        (
            ["--chat-template", "tool_chat_template.jinja"],
            {
                "chatTemplate": {
                    "configMapKeyRef": {"name": "chat-templates", "key": "template.jinja"}
                }
            },
        ),
    ],
    ids=lambda it: " ".join(it) if isinstance(it, list) else "",
)
def test_an_argument_becomes_its_field(arguments: list[str], fields: dict[str, Any]) -> None:
    assert engine(*arguments) == fields


def test_a_switch_in_underscores_becomes_its_field() -> None:
    assert translated("--trust_remote_code", "--seed=1") == {
        "model": {"trustRemoteCode": True},
        "engine": {"seed": 1},
    }


def test_several_served_names_are_a_name_and_its_aliases() -> None:
    assert translated("--served-model-name", "a", "b", "--seed=1")["model"] == {
        "name": "a",
        "aliases": ["b"],
    }


@pytest.mark.parametrize(
    ("arguments", "speculation"),
    [
        (
            ["--speculative-config.method", "mtp", "--speculative-config.num_speculative_tokens=2"],
            {"method": "MTP", "numSpeculativeTokens": 2},
        ),
        (
            ["--speculative-config", '{"method":"qwen3_next_mtp","num_speculative_tokens":2}'],
            {"method": "MTP", "numSpeculativeTokens": 2},
        ),
        (
            ["--speculative-config", '{"model":"o/d","num_speculative_tokens":4}'],
            {
                "method": "DraftModel",
                "numSpeculativeTokens": 4,
                "draftModel": {"uri": "hf://o/d"},
            },
        ),
        (
            [
                '--speculative-config={"method":"eagle","model":"o/d","num_speculative_tokens":3,'
                '"max_model_len":"65536","draft_sample_method":"probabilistic"}'
            ],
            {
                "method": "Eagle",
                "numSpeculativeTokens": 3,
                "draftModel": {"uri": "hf://o/d"},
                "maxModelLen": 65536,
                "draftSampling": "Probabilistic",
            },
        ),
    ],
    ids=["parts", "a model's own name for MTP", "no method", "tuning"],
)
def test_speculation_becomes_its_fields(arguments: list[str], speculation: dict[str, Any]) -> None:
    assert engine(*arguments) == {"speculativeDecoding": speculation}


@pytest.mark.parametrize(
    "config", [{"method": "mlp_speculator"}, {"method": "mtp", "tree": 1}], ids=["method", "part"]
)
def test_speculation_that_has_no_field_is_reported(config: dict[str, Any]) -> None:
    with pytest.raises(Inexpressible, match=r"--speculative-config .* has no field"):
        engine(f"--speculative-config={config!r}".replace("'", '"'))


def test_a_refusal_names_the_argument_or_the_variable() -> None:
    arguments = ["--api-key=x", "--config-format", "mine"]
    spec = spec_of("org/model", flags_of(arguments), {"PYTHONPATH": "/x"})
    assert refusals(spec) == [
        "--api-key: --api-key is set by the operator: set auth.apiKeysSecretRef instead",
        "--config-format: --config-format accepts only auto, hf or mistral: choose one of them, or "
        "remove it",
        "PYTHONPATH: is set by the operator or unsafe in a shared cluster: remove it",
    ]


def test_words_and_lists_become_those_of_their_fields() -> None:
    arguments = ["--runner", "pooling", "--convert=none", "--logits-processors", "vllm.a:B", "c:D"]
    assert engine(*arguments) == {
        "runner": "Pooling",
        "convert": "None",
        "logitsProcessors": ["vllm.a:B", "c:D"],
    }


def test_a_parser_in_a_file_is_a_file_of_a_custom_image() -> None:
    assert engine("--tool-parser-plugin", "mine.py") == {
        "image": "registry.example.com/parsers:1",
        "extraArgs": ["--tool-parser-plugin=/opt/parsers/mine.py"],
    }


def test_a_spec_that_the_operator_runs_has_no_refusal() -> None:
    assert refusals(spec_of("org/model", flags_of(["--seed=1"]), {})) == []
