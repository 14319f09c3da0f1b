"""The installed vLLM has what compat.py names, with the parameters we pass."""

import json
import subprocess
from pathlib import Path

import pytest

from engine_support import SERVER_IMAGE

PARAMETERS = {
    "AsyncEngineArgs.create_engine_config": {"usage_context"},
    "AsyncEngineArgs.from_cli_args": {"args"},
    "AsyncLLM.from_vllm_config": {
        "vllm_config",
        "usage_context",
        "disable_log_stats",
        "enable_log_requests",
        "stat_loggers",
    },
    "AsyncLLM.generate": {"prompt", "sampling_params", "request_id"},
    "AsyncLLM.add_request": {"request_id", "prompt", "params"},
    "AsyncLLM.check_admission": {"n", "request_id"},
    "AsyncLLM.get_num_unfinished_requests": set(),
    "AsyncLLM.get_supported_tasks": set(),
    "AsyncLLM.shutdown": set(),
    "StatLoggerBase.record": {"scheduler_stats", "iteration_stats"},
    "TokenizeParams": {"max_total_tokens", "max_output_tokens", "max_output_tokens_param"},
    "TokenizeParams.apply_post_tokenization": {"tokenizer", "prompt"},
    "VLLMValidationError": {"parameter"},
    "build_app": {"args", "supported_tasks", "model_config"},
    "init_app_state": {"engine_client", "state", "args", "supported_tasks"},
    "make_arg_parser": {"parser"},
    "parse_model_prompt": {"model_config", "prompt"},
    "validate_parsed_serve_args": {"args"},
}

SCRIPT = """
import inspect, json, sys
from llmservice_server.compat import is_cpu_build, load_vllm
on_cpu = is_cpu_build()
assert "vllm" not in sys.modules
vllm = load_vllm()
found = {}
for name in json.loads(sys.argv[1]):
    value = vllm
    for part in name.split("."):
        value = getattr(value, part)
    found[name] = sorted(inspect.signature(value).parameters)
import vllm as installed
fields = list(vllm.SamplingParams.__struct_fields__)
kinds = [kind.name for kind in vllm.RequestOutputKind]
print(json.dumps([found, fields, kinds, installed.__version__, on_cpu]))
"""


@pytest.fixture(scope="module")
def installed(engine_python: Path) -> tuple[dict[str, list[str]], list[str], list[str], str, bool]:
    run = subprocess.run(
        [engine_python, "-c", SCRIPT, json.dumps(list(PARAMETERS))],
        env={"PYTHONPATH": str(SERVER_IMAGE / "src"), "PATH": "/usr/bin:/bin", "HOME": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found, fields, kinds, version, on_cpu = json.loads(run.stdout.splitlines()[-1])
    return found, fields, kinds, version, on_cpu


def test_every_function_takes_what_we_pass(
    installed: tuple[dict[str, list[str]], list[str], list[str], str, bool],
) -> None:
    missing = {name: wanted - set(installed[0][name]) for name, wanted in PARAMETERS.items()}
    assert not any(missing.values()), missing


def test_sampling_takes_every_field_of_a_generate_request(
    installed: tuple[dict[str, list[str]], list[str], list[str], str, bool],
) -> None:
    from llmservice_server.generate import GenerateRequest

    asked = set(GenerateRequest.model_fields) - {"prompt", "stream"}
    assert asked | {"output_kind"} <= set(installed[1])
    assert {"DELTA", "FINAL_ONLY"} <= set(installed[2])


def test_it_is_the_version_that_is_named_once_and_its_cpu_build(
    installed: tuple[dict[str, list[str]], list[str], list[str], str, bool],
) -> None:
    named = (SERVER_IMAGE / "requirements" / "vllm-version").read_text().strip()
    assert installed[3].partition("+")[0] == named
    assert installed[4]
