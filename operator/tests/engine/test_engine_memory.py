"""Tests the plan's figures against the pinned vLLM, which builds each model without weights."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from llmservice_operator.fit import Checkpoint, Plan, Verdict, plan_fit, read_shape
from llmservice_operator.fit.kv_cache import StateStorage, request_bytes
from llmservice_operator.fit.verdict import UTILIZATION_PERCENT
from llmservice_operator.fit.weights import weight_bytes
from operator_support.services import a_service
from operator_support.shapes import CONFIGS
from server_support.preloaded import Preloaded

pytest_plugins = ("engine_fixtures",)

SCRIPT: Final = Path(__file__).parents[1] / "engine_memory.py"
WITH_OPTIONS: Final = " with other settings"
OPTIONS: Final = {
    "falcon-mamba-7b": {"enable_prefix_caching": True, "mamba_ssm_cache_dtype": "float32"},
    "mamba-codestral-7b": {"enable_prefix_caching": True, "mamba_ssm_cache_dtype": "float32"},
    "jamba-3b": {"enable_prefix_caching": False, "mamba_ssm_cache_dtype": "float32"},
    "nemotron-h-8b": {"enable_prefix_caching": False, "mamba_ssm_cache_dtype": "bfloat16"},
}
"""Name of a model -> engine arguments with which it is measured a second time."""
UNQUANTIZED: Final = [name for name, it in CONFIGS.items() if "quantization_config" not in it]


@pytest.fixture(scope="module")
def measured(
    preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    questions: list[list[Any]] = []
    folders: dict[str, str] = {}
    for name, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(name)
        folder.joinpath("config.json").write_text(json.dumps(config))
        questions.append([str(folder), {}])
        folders[name] = str(folder)
    questions.extend([folders[name], options] for name, options in OPTIONS.items())
    folder = tmp_path_factory.mktemp("memory")
    asked, found, log = folder / "questions.json", folder / "answers.json", folder / "log"
    asked.write_text(json.dumps(questions))
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    measuring = preloaded.start([str(SCRIPT), str(asked), str(found)], quiet, folder, log)
    assert measuring.wait(600) == 0, log.read_text()
    names = [*CONFIGS, *(name + WITH_OPTIONS for name in OPTIONS)]
    return dict(zip(names, json.loads(found.read_text()), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_request_takes_as_much_memory_as_vllm_reserves(
    name: str, measured: dict[str, dict[str, Any]]
) -> None:
    shape, vllm = read_shape(CONFIGS[name]), measured[name]
    assert shape.longest == vllm["length"]
    of_model = None if shape.state is None else shape.state.element_bytes
    computed = request_bytes(
        shape,
        vllm["length"],
        in_flight_tokens=vllm["in_flight"],
        element_bytes=2,
        storage=StateStorage(2, of_model or 2, caches_prefixes=bool(shape.windows)),
    )
    assert computed == pytest.approx(vllm["sequence"], rel=0.01)
    if shape.state is not None:
        assert computed == vllm["sequence"]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_prefix_cache_and_a_number_format_change_the_state_as_in_vllm(
    name: str, measured: dict[str, dict[str, Any]]
) -> None:
    engine = {
        "prefixCaching": {"enabled": OPTIONS[name]["enable_prefix_caching"]},
        "extraArgs": [f"--mamba-ssm-cache-dtype={OPTIONS[name]['mamba_ssm_cache_dtype']}"],
    }
    shape = read_shape(CONFIGS[name])
    found = plan_fit(a_service({"engine": engine}).spec, shape, Checkpoint({}), 2**34)
    assert found.request == measured[name + WITH_OPTIONS]["sequence"]


def test_the_engine_uses_the_planned_share_of_a_gpu_by_default(
    measured: dict[str, dict[str, Any]],
) -> None:
    for vllm in measured.values():
        assert vllm["utilization"] == UTILIZATION_PERCENT / 100


@pytest.mark.parametrize("name", UNQUANTIZED)
def test_the_weights_take_as_much_memory_as_in_vllm(
    name: str, measured: dict[str, dict[str, Any]]
) -> None:
    vllm = measured[name]
    computed = weight_bytes(Checkpoint(vllm["stored"]), read_shape(CONFIGS[name]), 2, None)
    assert computed == pytest.approx(vllm["weights"], rel=0.02)


@pytest.mark.parametrize("name", UNQUANTIZED)
@pytest.mark.parametrize(
    ("share", "verdict"),
    [(0.8, Verdict.FITS), (1.0, Verdict.WITHIN_10_PERCENT), (1.3, Verdict.DOES_NOT_FIT)],
)
def test_the_verdict_follows_from_what_vllm_needs(
    name: str, share: float, verdict: Verdict, measured: dict[str, dict[str, Any]]
) -> None:
    """`share` is the memory that vLLM needs, as a share of the memory that it may use."""
    vllm = measured[name]
    # These limits give as many tokens in flight as vLLM had when it was measured.
    batching = {"maxNumBatchedTokens": vllm["in_flight"] // 2, "maxNumSeqs": 64}
    service = a_service({"engine": {"batching": batching}})

    def planned(gpu: int) -> Plan:
        return plan_fit(service.spec, read_shape(CONFIGS[name]), Checkpoint(vllm["stored"]), gpu)

    needed = vllm["weights"] + vllm["sequence"] + planned(1).reserve
    assert planned(int(needed / share * 100 / UTILIZATION_PERCENT)).verdict is verdict
