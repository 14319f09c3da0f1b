"""Tests that every supported version of vLLM has the symbols of compat.py with their parameters,
and that every route of these versions was reviewed.

`make flag-tables V=...` writes the record of a version from its wheel. The engine tests compare the
record of the pinned version with the installed vLLM.
"""

import gc
import json
from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import core_schema

from engine_env import OTHERS, VERSIONS
from flag_tables import INTERFACES, interface_path
from llmservice_operator.desired.flag_tables import TABLES
from llmservice_server import compat
from llmservice_server.compat import _MODULES, Vllm, tell_steps
from llmservice_server.generate import GenerateRequest
from llmservice_server.routes import CLOSED, ROUTE_OF_PATH, ROUTES

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
    "AsyncLLM.abort": {"request_id", "internal"},
    "AsyncLLM.check_admission": {"n", "request_id"},
    "AsyncLLM.get_num_unfinished_requests": set(),
    "AsyncLLM.get_supported_tasks": set(),
    "AsyncLLM.shutdown": set(),
    "SamplingParams.verify": {
        "model_config",
        "speculative_config",
        "structured_outputs_config",
        "tokenizer",
    },
    "StatLoggerBase.record": {"scheduler_stats", "iteration_stats"},
    "StatLoggerBase.log_engine_initialized": set(),
    "TokenizeParams": {
        "max_total_tokens",
        "max_output_tokens",
        "truncate_prompt_tokens",
        "truncation_side",
    },
    "TokenizeParams.apply_pre_tokenization": {"tokenizer", "prompt"},
    "TokenizeParams.apply_post_tokenization": {"tokenizer", "prompt"},
    "VLLMValidationError": {"parameter"},
    "build_app": {"args", "supported_tasks", "model_config"},
    "init_app_state": {"engine_client", "state", "args", "supported_tasks"},
    "make_arg_parser": {"parser"},
    "parse_model_prompt": {"model_config", "prompt"},
    "validate_parsed_serve_args": {"args"},
}
"""Symbols that the server calls, with the parameters that it passes by name."""

FIELDS = {
    "RequestOutputKind": {"DELTA", "FINAL_ONLY"},
    "SamplingParams": {*GenerateRequest.model_fields, "output_kind"} - {"prompt", "stream"},
    "UsageContext": {"OPENAI_API_SERVER"},
}


@pytest.fixture(params=VERSIONS)
def interface(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(interface_path(request.param).read_text())
    return found


@pytest.fixture
def recorded(interface: dict[str, Any]) -> dict[str, Any]:
    symbols: dict[str, Any] = interface["symbols"]
    return symbols


def test_every_version_that_the_operator_knows_is_recorded_and_has_an_environment() -> None:
    assert sorted(VERSIONS) == sorted(TABLES)
    assert {path.stem for path in INTERFACES.glob("*.json")} == set(VERSIONS)
    assert len(VERSIONS) >= 4


@pytest.mark.parametrize(("version", "told"), [("0.32.0+cpu", True), ("0.32.0", False)])
def test_a_build_for_cpus_is_known_without_an_import_of_seconds(
    monkeypatch: pytest.MonkeyPatch, version: str, told: bool
) -> None:
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    monkeypatch.setattr("importlib.metadata.version", {"vllm": version}.__getitem__)
    # No vLLM is installed here, so the function cannot import it.
    assert compat.is_cpu_build() is told


def test_every_other_version_locks_the_code_of_its_own_name() -> None:
    for version, path in OTHERS.items():
        assert f"\nvllm=={version} \\\n    --hash=sha256:" in path.read_text()


def test_every_route_is_open_or_closed_for_a_reason(interface: dict[str, Any]) -> None:
    known = {path for _, path in interface["routes"]}
    closed = {path for paths in CLOSED.values() for path in paths}
    assert known - ROUTE_OF_PATH.keys() - closed == set()


def test_every_open_route_is_one_of_some_version_or_the_servers_own() -> None:
    known = {
        tuple(route)
        for version in VERSIONS
        for route in json.loads(interface_path(version).read_text())["routes"]
    }
    documented = {(method, route.path) for route in ROUTES for method in route.methods}
    assert documented - known == {("POST", "/generate"), ("GET", "/v1/models/{model}")}


def test_every_symbol_is_recorded_and_no_other(recorded: dict[str, Any]) -> None:
    named = {field.name for field in fields(Vllm)}
    assert set(recorded) == named == set(_MODULES)


def test_every_function_takes_what_we_pass(recorded: dict[str, Any]) -> None:
    missing = {}
    for name, wanted in PARAMETERS.items():
        symbol, _, method = name.partition(".")
        found = (
            recorded[symbol]["methods"].get(method) if method else recorded[symbol]["parameters"]
        )
        if found is None or not wanted <= set(found):
            missing[name] = found
    assert not missing


def test_every_structure_has_the_fields_we_set(recorded: dict[str, Any]) -> None:
    missing = {name: wanted - set(recorded[name]["fields"]) for name, wanted in FIELDS.items()}
    assert not any(missing.values()), missing


def test_a_dead_engine_says_so(recorded: dict[str, Any]) -> None:
    assert "errored" in recorded["AsyncLLM"]["properties"]


def test_the_engine_is_asked_to_tell_its_steps_and_whoever_wants_them_logged_gets_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stats = SimpleNamespace(SchedulerIterationDetails=object)
    monkeypatch.setattr("llmservice_server.compat.importlib.import_module", lambda _: stats)
    for asked in (False, True):
        observability = SimpleNamespace(enable_logging_iteration_details=asked)
        assert tell_steps(SimpleNamespace(observability_config=observability)) is asked
        assert observability.enable_logging_iteration_details


def test_an_engine_that_can_only_log_its_steps_is_not_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "llmservice_server.compat.importlib.import_module", lambda _: SimpleNamespace()
    )
    observability = SimpleNamespace(enable_logging_iteration_details=False)
    assert not tell_steps(SimpleNamespace(observability_config=observability))
    assert not observability.enable_logging_iteration_details


def test_a_list_is_refused_at_its_first_wrong_item() -> None:
    lists = core_schema.list_schema
    try:
        compat._stop_at_the_first_wrong_item()
        compat._stop_at_the_first_wrong_item()
        with pytest.raises(ValidationError) as refused:
            TypeAdapter(list[dict[str, int]] | list[str]).validate_python([1] * 20_000)
        assert refused.value.error_count() == 2
    finally:
        core_schema.list_schema = lists


@pytest.mark.parametrize("fails", [False, True])
def test_the_garbage_collector_waits_for_the_end_of_the_imports(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    collects = []

    def find(symbol: str) -> str:
        collects.append(gc.isenabled())
        if fails:
            raise ImportError(symbol)
        return symbol

    monkeypatch.setattr(compat, "_find", find)
    monkeypatch.setattr(compat, "_stop_at_the_first_wrong_item", lambda: None)
    gc.unfreeze()
    try:
        with pytest.raises(ImportError) if fails else nullcontext():
            compat.load_vllm.__wrapped__()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    assert set(collects) == {False}
