from pathlib import Path
from typing import Any

import pytest

from flag_tables import render_table, table_path
from llmservice_operator.api.extra_args import FLAG_FIELDS, FLAGS_WITH_A_FIELD, is_refused
from llmservice_operator.api.flags import FlagField
from llmservice_operator.desired import flag_tables
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.engine_flags import EngineFlags, accepted_flags
from llmservice_operator.desired.flag_tables import TABLES, FlagKind
from llmservice_operator.desired.gone_flags import GONE
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import ENGINE_VERSION
from operator_support.services import HARMLESS_ARG, HARMLESS_FLAG, HARMLESS_SWITCH, a_service
from operator_support.spec_fields import is_set, schema_of

CPU = {"accelerator": {"type": "cpu"}}
HUB = {"uri": "hf://org/model"}


def off(switch: str) -> str:
    """Return the argument that turns a switch of the engine off."""
    return f"--no-{switch.removeprefix('--')}"


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
    "a model in an object store": (
        {"model": {"uri": "s3://weights/llama", "name": "m"}},
        ["--model=s3://weights/llama", "--served-model-name=m", "--tensor-parallel-size=1"],
    ),
    "weights that are streamed": (
        {
            "engine": {
                "loading": {
                    "format": "RunaiStreamer",
                    "concurrency": 32,
                    "memoryLimit": "5Gi",
                    "distributed": True,
                }
            }
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--tensor-parallel-size=1",
            '--model-loader-extra-config={"concurrency":32,"memory_limit":5368709120,'
            '"distributed":true}',
            "--load-format=runai_streamer",
        ],
    ),
    "another loader without options": (
        {**CPU, "engine": {"loading": {"format": "FastSafetensors"}}},
        ["--model=org/model", "--served-model-name=qwen", "--load-format=fastsafetensors"],
    ),
    "web pages that may call the API": (
        {**CPU, "engine": {"extraArgs": ['--allowed-origins=["https://my.page"]']}},
        [
            "--model=org/model",
            "--served-model-name=qwen",
            '--allowed-origins=["https://my.page"]',
        ],
    ),
    "the root of a claim": (
        {**CPU, "model": {"uri": "pvc://claim", "name": "m"}},
        ["--model=/models", "--served-model-name=m"],
    ),
    "every engine field, in this order, extra arguments last": (
        {
            "model": {**HUB, "name": "chat", "revision": "abc"},
            "engine": {
                "extraArgs": [HARMLESS_ARG, f"{HARMLESS_SWITCH}=true"],
                "allowedMediaDomains": ["images.example.com"],
                "convert": "Embed",
                "runner": "Pooling",
                "seed": 7,
                "kvCache": {"offload": {"cpu": "1500Mi"}, "dtype": "FP8E4M3"},
                "prefixCaching": {"enabled": True},
                "batching": {
                    "maxQueuedTokens": 7,
                    "maxQueuedRequests": 6,
                    "performanceMode": "Interactivity",
                    "schedulingPolicy": "Priority",
                    "longPrefillTokenThreshold": 50,
                    "chunkedPrefill": True,
                    "maxNumBatchedTokens": 64,
                    "maxNumSeqs": 4,
                },
                "parallelism": {"expert": True, "data": 2, "pipeline": 3, "tensor": 4},
                "gpuMemoryUtilizationPercent": 5,
                "quantization": "fp8",
                "dtype": "BFloat16",
                "maxModelLen": 100,
            },
        },
        [
            "--model=org/model",
            "--served-model-name=chat",
            "--revision=abc",
            "--max-model-len=100",
            "--dtype=bfloat16",
            "--quantization=fp8",
            "--gpu-memory-utilization=0.05",
            "--tensor-parallel-size=4",
            "--pipeline-parallel-size=3",
            "--data-parallel-size=2",
            "--enable-expert-parallel",
            "--max-num-seqs=4",
            "--max-num-batched-tokens=64",
            "--enable-chunked-prefill",
            "--long-prefill-token-threshold=50",
            "--scheduling-policy=priority",
            "--performance-mode=interactivity",
            "--max-num-queued-reqs=6",
            "--max-num-queued-tokens=7",
            "--enable-prefix-caching",
            "--kv-cache-dtype=fp8_e4m3",
            "--kv-offloading-size=1.465",
            "--seed=7",
            "--runner=pooling",
            "--convert=embed",
            "--allowed-media-domains=images.example.com",
            HARMLESS_ARG,
            HARMLESS_SWITCH,
        ],
    ),
    "classes of the image that change probabilities": (
        {**CPU, "engine": {"logitsProcessors": ["vllm.a:B"]}},
        ["--model=org/model", "--served-model-name=qwen", "--logits-processors=vllm.a:B"],
    ),
    "a seed that stands where it stood before it had a field": (
        {**CPU, "engine": {"extraArgs": [HARMLESS_ARG, "--seed=-1"]}},
        ["--model=org/model", "--served-model-name=qwen", HARMLESS_ARG, "--seed=-1"],
    ),
    "a context that the memory decides": (
        {**CPU, "engine": {"maxModelLen": "Auto"}},
        ["--model=org/model", "--served-model-name=qwen", "--max-model-len=auto"],
    ),
    "a context that the memory decides, as the engine spells it": (
        {**CPU, "engine": {"maxModelLen": "auto"}},
        ["--model=org/model", "--served-model-name=qwen", "--max-model-len=auto"],
    ),
    "a number format in its earlier spelling": (
        {**CPU, "engine": {"dtype": "bfloat16"}},
        ["--model=org/model", "--served-model-name=qwen", "--dtype=bfloat16"],
    ),
    "what is off is said to be off": (
        {
            **CPU,
            "engine": {
                "batching": {"chunkedPrefill": False, "longPrefillTokenThreshold": 0},
                "prefixCaching": {"enabled": False},
                "extraArgs": [f"{HARMLESS_SWITCH}=false"],
            },
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--no-enable-chunked-prefill",
            "--long-prefill-token-threshold=0",
            "--no-enable-prefix-caching",
            off(HARMLESS_SWITCH),
        ],
    ),
    "a share of GPU memory and an offload in whole numbers": (
        {"engine": {"gpuMemoryUtilizationPercent": 90, "kvCache": {"offload": {"cpu": "64Gi"}}}},
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--gpu-memory-utilization=0.90",
            "--tensor-parallel-size=1",
            "--kv-offloading-size=64",
        ],
    ),
    "a variable in an argument is not expanded by the kubelet": (
        {**CPU, "engine": {"extraArgs": [f"{HARMLESS_FLAG}=$(HF_TOKEN)"]}},
        ["--model=org/model", "--served-model-name=qwen", f"{HARMLESS_FLAG}=$$(HF_TOKEN)"],
    ),
    "nor is one behind a dollar that would only be read as one": (
        {**CPU, "engine": {"extraArgs": [f"{HARMLESS_FLAG}=$$(HF_TOKEN)"]}},
        ["--model=org/model", "--served-model-name=qwen", f"{HARMLESS_FLAG}=$$$$(HF_TOKEN)"],
    ),
    "aliases after the name, each an argument": (
        {**CPU, "model": {**HUB, "name": "chat", "aliases": ["gpt-4.1", "org/chat"]}},
        ["--model=org/model", "--served-model-name", "chat", "gpt-4.1", "org/chat"],
    ),
    "aliases beside the default name": (
        {**CPU, "model": {**HUB, "aliases": ["chat"]}, "engine": {"maxModelLen": 8}},
        ["--model=org/model", "--max-model-len=8", "--served-model-name", "qwen", "chat"],
    ),
    "the model's own code, trusted": (
        {**CPU, "model": {**HUB, "trustRemoteCode": True}},
        ["--model=org/model", "--served-model-name=qwen", "--trust-remote-code"],
    ),
    "adapters with the default limits": (
        {**CPU, "model": {**HUB, "adapters": [{"name": "sql", "uri": "hf://org/sql"}]}},
        [
            "--model=org/model",
            "--served-model-name=qwen",
            *("--enable-lora", "--max-loras=4", "--max-lora-rank=16"),
        ],
    ),
    "room for adapters that come later": (
        {**CPU, "model": {**HUB, "maxLoras": 2, "maxLoraRank": 64}},
        [
            "--model=org/model",
            "--served-model-name=qwen",
            *("--enable-lora", "--max-loras=2", "--max-lora-rank=64"),
        ],
    ),
    "chats, tools and reasoning": (
        {
            **CPU,
            "engine": {
                "chatTemplate": {"inline": "{% if a %}\n{{ '$$(X) é' }}\n{% endif %}"},
                "toolCalling": {"parser": "hermes"},
                "reasoningParser": "qwen3",
            },
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            "--chat-template={% if a %}\n{{ '$$$$(X) é' }}\n{% endif %}",
            "--enable-auto-tool-choice",
            "--tool-call-parser=hermes",
            "--reasoning-parser=qwen3",
        ],
    ),
    "a chat template of a ConfigMap, by its variable": (
        {
            **CPU,
            "engine": {
                "chatTemplate": {"configMapKeyRef": {"name": "texts", "key": "chat"}},
                "extraArgs": [HARMLESS_ARG],
            },
        },
        [
            "--model=org/model",
            "--served-model-name=qwen",
            HARMLESS_ARG,
            "--chat-template=$(LLMSERVICE_CHAT_TEMPLATE)",
        ],
    ),
}


@pytest.mark.parametrize(("spec", "args"), COMPILED.values(), ids=COMPILED.keys())
def test_a_spec_is_compiled_to_the_engines_arguments(spec: dict[str, Any], args: list[str]) -> None:
    assert build_engine_args(a_service(spec), ENGINE_VERSION) == args


COMPILED_IN_TEST_SPECULATION = {"--speculative-config"}


@pytest.mark.parametrize("field", FLAG_FIELDS, ids=lambda field: field.name)
def test_every_field_that_sets_a_flag_is_compiled_in_a_case_above(field: FlagField) -> None:
    assert field.flag.name in compiled_with(field) | COMPILED_IN_TEST_SPECULATION, (
        f"set spec.{field.name} in a case of COMPILED and expect {field.flag.name} there"
    )


def has_an_off(field: FlagField) -> bool:
    """Return whether the value `false` of the field becomes an argument.

    The default does not become an argument.
    """
    is_boolean = schema_of(field.name).get("type") == "boolean"
    is_switch = TABLES[ENGINE_VERSION][field.flag.name].kind is FlagKind.SWITCH
    return is_boolean and is_switch and field.default is not False


@pytest.mark.parametrize(
    "field", [each for each in FLAG_FIELDS if has_an_off(each)], ids=lambda field: field.name
)
def test_every_field_that_turns_a_switch_off_does_so_in_a_case_above(field: FlagField) -> None:
    argument = off(field.flag.name)
    assert argument in compiled_with(field), (
        f"set spec.{field.name}: false in a case of COMPILED and expect {argument} there"
    )


def compiled_with(field: FlagField) -> set[str]:
    """Return the flags that the engine gets in the cases that set the field."""
    cases = (args for spec, args in COMPILED.values() if is_set(spec, field.name))
    return {arg.partition("=")[0] for args in cases for arg in args}


@pytest.mark.parametrize(
    ("args", "field", "message"),
    [
        (
            [HARMLESS_ARG, "--max-logprob=4"],
            "spec.engine.extraArgs[1]",
            "--max-logprob is not a flag of vLLM: did you mean --max-logprobs?",
        ),
        (
            ["--max-num-batched-token=8192"],
            "spec.engine.extraArgs[0]",
            "--max-num-batched-token is not a flag of vLLM: did you mean --max-num-batched-tokens? "
            "Set engine.batching.maxNumBatchedTokens instead",
        ),
        (
            ["--no-enable-prefix-caching=true"],
            "spec.engine.extraArgs[0]",
            "--no-enable-prefix-caching turns off --enable-prefix-caching: "
            "set engine.prefixCaching.enabled instead",
        ),
        (
            # vLLM has had this spelling since 0.33.
            ["--disable-prefix-caching=true"],
            "spec.engine.extraArgs[0]",
            "--disable-prefix-caching turns off --enable-prefix-caching: "
            "set engine.prefixCaching.enabled instead",
        ),
        (
            ["--enable-cascade-attn=true"],
            "spec.engine.extraArgs[0]",
            "--enable-cascade-attn turns off --disable-cascade-attn: "
            "write --disable-cascade-attn=false instead",
        ),
        (
            ["--no-enforce-eager=true"],
            "spec.engine.extraArgs[0]",
            "--no-enforce-eager turns off --enforce-eager: write --enforce-eager=false instead",
        ),
        (
            ["--no-max-logprobs=true"],
            "spec.engine.extraArgs[0]",
            "--no-max-logprobs is not a flag of vLLM: did you mean --max-logprobs?",
        ),
        (
            ["--disable-log-requests=true"],
            "spec.engine.extraArgs[0]",
            "--disable-log-requests is gone from vLLM: "
            "remove it, because requests are never logged",
        ),
        (
            ["--num-speculative-tokens=5"],
            "spec.engine.extraArgs[0]",
            "--num-speculative-tokens is gone from vLLM: set engine.speculativeDecoding instead",
        ),
        (
            ["--enable-structured-logging=true"],
            "spec.engine.extraArgs[0]",
            "--enable-structured-logging is not a flag of vLLM: remove it; "
            "docs/engine-flags.md lists them",
        ),
        (
            ["--zzzzzz=1"],
            "spec.engine.extraArgs[0]",
            "--zzzzzz is not a flag of vLLM: remove it; docs/engine-flags.md lists them",
        ),
        (
            ["--enforce-eager=yes"],
            "spec.engine.extraArgs[0]",
            "--enforce-eager is a switch: write --enforce-eager=true or --enforce-eager=false",
        ),
        (
            [f"{HARMLESS_FLAG}=1", f"{HARMLESS_FLAG}=2"],
            "spec.engine.extraArgs[1]",
            f"{HARMLESS_FLAG} is given twice: remove one of the two",
        ),
        (
            ["--logprobs-mode=all"],
            "spec.engine.extraArgs[0]",
            "all is not a value of --logprobs-mode in vLLM 0.32.0: choose from processed_logits, "
            "processed_logprobs, raw_logits, raw_logprobs",
        ),
    ],
)
def test_an_extra_argument_is_refused_with_what_to_write_instead(
    args: list[str], field: str, message: str
) -> None:
    assert refusal(args) == (field, message)


def test_a_flag_that_the_version_lacks_is_refused_with_the_versions_that_have_it() -> None:
    field = "spec.engine.extraArgs[0]"
    assert refusal(["--max-num-active-seqs=4"], "0.30.0") == (
        field,
        "needs --max-num-active-seqs, which vLLM 0.30.0 does not have: remove it, or run an "
        "engine.version that has it: 0.31.0, 0.32.0 or 0.33.0",
    )
    assert refusal(["--enable-hc-sp=true"], "0.31.0") == (
        field,
        "needs --enable-hc-sp, which vLLM 0.31.0 does not have: remove it, or run an "
        "engine.version that has it: 0.32.0 or 0.33.0",
    )


def test_a_field_that_the_version_lacks_is_refused_with_the_versions_that_have_it() -> None:
    older = EngineFlags("0.29.0", {})
    with pytest.raises(InvalidSpec) as refused:
        older.write("--max-num-queued-reqs", 1, "spec.engine.batching.maxQueuedRequests")
    assert str(refused.value) == (
        "spec.engine.batching.maxQueuedRequests: needs --max-num-queued-reqs, which vLLM 0.29.0 "
        "does not have: remove it, or run an engine.version that has it: 0.30.0, 0.31.0, 0.32.0 or "
        "0.33.0"
    )


@pytest.mark.parametrize(
    ("engine", "field", "flag", "name"),
    [
        (
            {"toolCalling": {"parser": "hermess"}},
            "spec.engine.toolCalling.parser",
            "--tool-call-parser",
            "llama3_json",
        ),
        (
            {"reasoningParser": "qwen"},
            "spec.engine.reasoningParser",
            "--reasoning-parser",
            "deepseek_r1",
        ),
    ],
)
def test_a_parser_that_the_version_does_not_bring_is_refused_with_those_that_it_does(
    engine: dict[str, Any], field: str, flag: str, name: str
) -> None:
    with pytest.raises(
        InvalidSpec, match=f"is not a value of {flag} in vLLM {ENGINE_VERSION}"
    ) as refused:
        build_engine_args(a_service({"engine": engine}), ENGINE_VERSION)
    assert refused.value.field == field
    assert f" {name}," in refused.value.message


def test_a_version_without_a_table_is_refused_with_those_that_have_one() -> None:
    assert refusal([], "0.9.0") == (
        "spec.engine.version",
        "vLLM 0.9.0 is not known to this operator: use an image of vLLM 0.30.0, 0.31.0, 0.32.0 or "
        "0.33.0 and set its version",
    )


def refusal(extra_args: list[str], version: str = ENGINE_VERSION) -> tuple[str, str]:
    with pytest.raises(InvalidSpec) as refused:
        build_engine_args(a_service({"engine": {"extraArgs": extra_args}}), version)
    return refused.value.field, refused.value.message


@pytest.mark.parametrize("arg", ["--trust-remote=true", "--confi=x", "--limit-mm-per-promp=1"])
def test_an_abbreviated_flag_is_refused(arg: str) -> None:
    with pytest.raises(InvalidSpec):
        build_engine_args(a_service({"engine": {"extraArgs": [arg]}}), ENGINE_VERSION)


def test_a_switch_without_a_negative_form_is_turned_off_by_leaving_it_out() -> None:
    def extra(value: str) -> list[str]:
        args = [f"--aggregate-engine-logging={value}"]
        return build_engine_args(a_service({"engine": {"extraArgs": args}}), ENGINE_VERSION)[3:]

    assert extra("true") == ["--aggregate-engine-logging"]
    assert extra("false") == []


@pytest.mark.parametrize("version", TABLES)
def test_a_flag_has_a_field_or_is_accepted_or_refused_and_never_two_of_these(version: str) -> None:
    accepted = accepted_flags(TABLES[version])
    assert len(accepted) > 100
    assert not [flag for flag in FLAGS_WITH_A_FIELD if flag in accepted or is_refused(flag)]
    assert not [flag for flag in accepted if is_refused(flag)]


@pytest.mark.parametrize(
    "flag",
    [
        *(
            "--api-key",
            "--chat-template-path",
            "--ec-transfer-config",
            "--config",
            "--data-parallel-rank",
        ),
        *(
            "--download-dir",
            "--grpc-port",
            "--model-class-overrides",
            "--host",
            "--kv-transfer-config",
        ),
        *("--lora-dtype", "--middleware", "--nnodes"),
        *("--port", "--io-processor-plugin", "--root-path", "--scheduler-cls", "--ssl-keyfile"),
        *("--tokenizer", "--tool-server", "--trust-request-chat-template", "--uds", "--worker-cls"),
        *("--enable-prompt-embeds", "--log-config-file", "--some-coming-plugin", "--new-config"),
    ],
)
def test_a_flag_that_could_harm_is_refused_even_if_a_later_version_adds_it(flag: str) -> None:
    assert is_refused(flag)


@pytest.mark.parametrize(
    "flag",
    [
        *("--generation-config", "--override-generation-config", "--additional-config"),
        *(HARMLESS_FLAG, "--import"),
    ],
)
def test_a_harmless_flag_is_not_refused_for_the_form_of_its_name(flag: str) -> None:
    assert not is_refused(flag)


def test_every_table_in_the_folder_is_read_oldest_version_first() -> None:
    folder = Path(flag_tables.__file__).parent
    assert {path.stem for path in folder.glob("*.json")} == {*TABLES}
    assert list(TABLES) == sorted(TABLES, key=lambda each: [int(part) for part in each.split(".")])


def test_a_table_is_read_and_written_alike() -> None:
    for version, table in TABLES.items():
        flags = {
            name: {"kind": flag.kind, "choices": list(flag.choices)} for name, flag in table.items()
        }
        assert render_table(flags) == table_path(version).read_text(), version


def test_the_version_of_the_released_images_has_a_table() -> None:
    assert ENGINE_VERSION in TABLES


@pytest.mark.parametrize("flag", sorted(GONE))
def test_a_removed_flag_is_in_no_version_and_has_a_replacement_that_exists(flag: str) -> None:
    assert all(flag not in table for table in TABLES.values())
    assert not is_refused(flag), "the schema refuses it with a message of its own"
    fields = {field.name for field in FLAG_FIELDS} | {"accelerator.type"}
    for word in GONE[flag].split():
        if word.startswith("--"):
            assert word.partition("=")[0] in accepted_flags(TABLES[ENGINE_VERSION])
        elif word.startswith(("engine.", "accelerator.")):
            assert word in fields
