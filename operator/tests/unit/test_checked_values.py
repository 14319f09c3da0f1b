"""Tests the checks on the values of flags that are harmless with most values."""

from typing import Any, Final

import pytest

from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.checked_values import JSON_FLAGS
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.errors import InvalidSpec
from operator_support.services import a_body, a_service

NEWEST: Final = "0.32.0"
OWN_IMAGE: Final = {"image": "registry.example.com/server:1"}


def compiled(engine: dict[str, Any]) -> list[str]:
    return build_engine_args(a_service({"engine": engine}), NEWEST)


def refusal(arg: str, **engine: Any) -> str:
    with pytest.raises(InvalidSpec) as refused:
        compiled({"extraArgs": [arg], **engine})
    assert refused.value.field == "spec.engine.extraArgs[0]"
    return refused.value.message


@pytest.mark.parametrize(
    "arg",
    [
        '--hf-overrides={"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}',
        '--hf-overrides={"architectures": ["Qwen3ForSequenceClassification"]}',
        '--pooler-config={"dimensions": 256, "use_activation": true}',
        '--mm-processor-kwargs={"do_pan_and_scan": true}',
        '--media-io-kwargs={"video": {"num_frames": 512, "fps": 1}}',
        '--compilation-config={"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"}',
        '--compilation-config={"custom_ops": ["all"]}',
        '--compilation-config={"backend": "eager"}',
        '--kernel-config={"enable_flashinfer_autotune": false}',
        '--attention-config={"backend": "TRITON_ATTN"}',
        '--reasoning-config={"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
        "--load-format=fastsafetensors",
    ],
)
def test_a_harmless_value_is_passed_on_as_it_is(arg: str) -> None:
    assert compiled({"extraArgs": [arg]})[-1] == arg


@pytest.mark.parametrize("flag", JSON_FLAGS)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is not valid JSON (Expecting property name"),
        ("[" * 900, "is not valid JSON ("),
        ("3", 'must be a JSON object, such as {"name": 1}'),
        ('["a"]', 'must be a JSON object, such as {"name": 1}'),
        ('{"a": {"b": [{"auto_map": {}}]}}', "auto_map names code or files"),
        ('{"trust_remote_code": true}', "trust_remote_code names code or files"),
        ('{"debug_dump_path": "x"}', "debug_dump_path names code or files"),
        ('{"cache_dir": ""}', "cache_dir names code or files"),
        ('{"a_coming_plugin": 1}', "a_coming_plugin names code or files"),
        ('{"worker_cls": 1}', "worker_cls names code or files"),
        ('{"_private": 1}', "_private names code or files"),
        ('{"a": ["b", "/models/x"]}', "a is '/models/x', which names a file or an address"),
        ('{"a": {"b": "../x"}}', "b is '../x', which names a file or an address"),
        ('{"a": "file:///x"}', "a is 'file:///x', which names a file or an address"),
        ('{"a": "https://example.com/x"}', "a is 'https://example.com/x', which names a file"),
    ],
)
def test_a_json_value_that_names_code_or_files_is_refused(flag: str, value: str, said: str) -> None:
    assert refusal(f"{flag}={value}").startswith(f"{flag}: {said}")


@pytest.mark.parametrize(
    "arg",
    [
        '--compilation-config={"backend": "os.system"}',
        '--compilation-config={"inductor_passes": {"post_grad_custom_post_pass": "x.y"}}',
        '--compilation-config={"inductor_compile_config": {"cpp.cxx": "x"}}',
        '--mm-processor-kwargs={"revision": "other"}',
    ],
)
def test_a_key_that_is_unsafe_for_one_flag_alone_is_refused_there(arg: str) -> None:
    assert "names code or files" in refusal(arg)


@pytest.mark.parametrize("flag", ["--reasoning-parser-plugin", "--tool-parser-plugin"])
def test_a_parser_plugin_is_a_file_of_a_custom_image(flag: str) -> None:
    arg = f"{flag}=/opt/parsers/mine.py"
    assert compiled({**OWN_IMAGE, "extraArgs": [arg]})[-1] == arg
    assert "requires engine.image" in refusal(arg)


@pytest.mark.parametrize(
    "path",
    [
        *("/models/x.py", "/model-cache/x.py", "/draft-models/x.py", "/cache/x.py", "/tmp/x.py"),
        *("/dev/shm/x.py", "/proc/1/cwd/x.py", "/opt/../models/x.py", "//models/x.py", "x.py"),
        *("/opt/x.txt", "/etc/llmservice/api-keys/x.py", "/opt/./x.py"),
    ],
)
def test_a_parser_plugin_is_never_a_file_of_a_volume(path: str) -> None:
    assert "inside the image" in refusal(f"--tool-parser-plugin={path}", **OWN_IMAGE)


def test_a_misspelled_flag_of_a_parser_plugin_is_refused_with_the_right_one() -> None:
    said = refusal("--tool-call-parser-plugin=/opt/parsers/mine.py", **OWN_IMAGE)
    assert said.endswith("did you mean --tool-parser-plugin?")


def test_a_removed_member_is_refused_with_its_replacement() -> None:
    assert refusal('--compilation-config={"use_inductor": false}') == (
        '--compilation-config: {"use_inductor":false} is gone from vLLM: '
        'write {"backend":"eager"} instead'
    )


def test_a_custom_image_may_have_parsers_that_vllm_does_not_contain() -> None:
    engine = {"toolCalling": {"parser": "house"}, "reasoningParser": "house_r1"}
    assert "--tool-call-parser=house" in compiled({**engine, **OWN_IMAGE})
    assert "--reasoning-parser=house_r1" in compiled({**engine, **OWN_IMAGE})
    with pytest.raises(InvalidSpec, match="house is not a value of --tool-call-parser"):
        compiled(engine)


def test_a_custom_image_changes_the_choices_of_no_other_flag() -> None:
    with pytest.raises(InvalidSpec, match="choose from"):
        compiled({**OWN_IMAGE, "extraArgs": ["--moe-backend=house"]})


def test_several_values_of_a_flag_are_separate_arguments() -> None:
    two = ["vllm.a:B", "vllm.c:D"]
    args = compiled({"allowedMediaDomains": ["a.example", "b.example"], "logitsProcessors": two})
    at = args.index("--allowed-media-domains")
    assert args[at : at + 3] == ["--allowed-media-domains", "a.example", "b.example"]
    assert args[at + 3 :] == ["--logits-processors", *two]


def test_media_domains_still_work_as_an_argument() -> None:
    arg = "--allowed-media-domains=a.example"
    assert compiled({"extraArgs": [arg]})[-1] == arg
    assert compiled({"extraArgs": [arg], "allowedMediaDomains": ["a.example"]})[-1] == arg


def problems(engine: dict[str, Any]) -> list[str]:
    return [str(each) for each in LLMService.problems(a_body({"engine": engine}))]


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("--lora-dtype", "is set by the operator or unsafe in a shared cluster: remove it"),
        ("--kv-cache-dtype", "--kv-cache-dtype has a field of its own: set engine.kvCache.dtype"),
        ("--attention_config.backend=X", 'nested options as JSON, such as --attention-config={"'),
        ("--logits-processors=a:B", "set engine.logitsProcessors instead"),
    ],
)
def test_an_argument_in_a_wrong_form_is_refused_with_all_its_problems(arg: str, said: str) -> None:
    (problem, *_) = (each for each in problems({"extraArgs": [arg]}) if said in each)
    assert problem.startswith("spec.engine.extraArgs[0]: ")


def test_a_processor_of_another_package_needs_a_custom_image() -> None:
    others = {"logitsProcessors": ["house.rules:Short"]}
    (problem,) = problems(others)
    assert "must start with vllm. if engine.image is unset" in problem
    assert problems({**others, **OWN_IMAGE}) == []
