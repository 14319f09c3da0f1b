import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import engine_env
from localkube.hub.models import TINY_LLAMA, build_models
from server_support.engine import ModelServer, common_environment, flags_for, running_server
from server_support.preloaded import Preloaded, preloaded_interpreter

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="session")
def engine_python() -> Path:
    return engine_env.engine_python()


@pytest.fixture(scope="session")
def installed_vllm(
    preloaded: Preloaded, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Facts about the vLLM under test, such as its version, symbols and routes."""
    script = Path(__file__).parents[1] / "installed_vllm.py"
    folder = tmp_path_factory.mktemp("installed")
    found, log = folder / "found.json", folder / "log"
    asked = preloaded.start([str(script), str(found)], {}, folder, log)
    assert asked.wait(60) == 0, log.read_text()
    answer: dict[str, Any] = json.loads(found.read_text())
    return answer


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return build_models()[TINY_LLAMA]


@pytest.fixture(scope="session")
def preloaded(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """Interpreter with vLLM already imported. It forks the servers of tests that do not test the
    imports.
    """
    environment = common_environment(engine_python, tmp_path_factory.mktemp("preloaded"))
    with preloaded_interpreter(engine_python, environment) as interpreter:
        yield interpreter


TESTS_ALL_VERSIONS = os.environ.get("LLMSERVICE_TEST_VERSIONS") == "all"
NEWEST = max(engine_env.VERSIONS, key=lambda version: [*map(int, version.split("."))])


def _interpreter_of(
    version: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Preloaded]:
    """Yield an interpreter like `preloaded`. Its Python code is that of the version, and its
    compiled parts are those of the pinned version.
    """
    if version == engine_env.PINNED:
        yield request.getfixturevalue("preloaded")
        return
    python = engine_env.engine_python(version)
    environment = common_environment(python, tmp_path_factory.mktemp(f"vllm-{version}"))
    with preloaded_interpreter(python, environment) as interpreter:
        yield interpreter


@pytest.fixture(
    scope="session",
    params=engine_env.VERSIONS
    if TESTS_ALL_VERSIONS
    else tuple(dict.fromkeys((engine_env.PINNED, NEWEST))),
)
def of_any_version(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Preloaded]:
    """Interpreter of the pinned and of the newest version; of each version if
    LLMSERVICE_TEST_VERSIONS is all.
    """
    yield from _interpreter_of(request.param, request, tmp_path_factory)


@pytest.fixture(
    scope="session", params=engine_env.VERSIONS if TESTS_ALL_VERSIONS else (engine_env.PINNED,)
)
def version(request: pytest.FixtureRequest) -> str:
    """The pinned version; each version if LLMSERVICE_TEST_VERSIONS is all. It is for tests that
    take too long for two versions in every run.
    """
    return str(request.param)


@pytest.fixture(scope="session")
def of_version(
    version: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Preloaded]:
    """Interpreter of `version`."""
    yield from _interpreter_of(version, request, tmp_path_factory)


@pytest.fixture(scope="session")
def loading_answers() -> dict[str, int]:
    """Path -> HTTP status that the server of `serving` returned while it was loading."""
    return {}


@pytest.fixture(scope="session")
def api_keys() -> tuple[str, ...]:
    """Keys of the server of `serving`. Its `ModelServer` sends the first one with each request."""
    return KEYS


@pytest.fixture(scope="session")
def serving(
    engine_python: Path,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    loading_answers: dict[str, int],
) -> Iterator[ModelServer]:
    """One server for all tests that only send requests."""
    folder = tmp_path_factory.mktemp("serving")
    keys = tmp_path_factory.mktemp("keys")
    for number, key in enumerate(KEYS):
        (keys / str(number)).write_text(f"{key}\n")
    settings = {
        "LLMSERVICE_API_KEYS_DIRECTORY": str(keys),
        # The log must not contain a prompt at any level, so the server logs at the lowest level.
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "LLMSERVICE_MAX_BODY_BYTES": "2000000",
        "LLMSERVICE_MAX_CHOICES": "8",
        "LLMSERVICE_SLO_TTFT_MILLISECONDS": "60000",
        "LLMSERVICE_SLO_ITL_MILLISECONDS": "0.001",
    }
    flags = (*flags_for(tiny_model), "--max-num-queued-reqs=256")
    with running_server(engine_python, folder, *flags, **settings) as started:
        started.headers["Authorization"] = f"Bearer {KEYS[0]}"
        started.eventually(started.is_listening, seconds=60)
        for path in ("/livez", "/startupz", "/readyz"):
            loading_answers[path] = started.probe(path).status
        refused = started.get("/v1/models")
        loading_answers["/v1/models"] = refused.status
        assert "retry-after" in refused.headers
        phases = [started.probe("/readyz").json()["phase"]]
        while phases[-1] != "ready":
            started.eventually(lambda: started.probe("/readyz").json()["phase"] != phases[-1])
            phases.append(started.probe("/readyz").json()["phase"])
        assert phases[0] == "importing"
        assert "loading" in phases
        yield started


@pytest.fixture
def server(serving: ModelServer) -> ModelServer:
    return serving
