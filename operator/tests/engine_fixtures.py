"""Fixtures of the tests that query the pinned vLLM.

This module is no conftest.py, because mypy would confuse it with the conftest.py of the model
server's engine tests.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

import engine_env
from engine_asking import Ask, asking_engine
from engine_stand_ins import StandIns
from localkube.hub.models import TINY_LLAMA, build_models
from localkube.hub.packages import suffix_packages
from server_support.engine import common_environment
from server_support.preloaded import Preloaded, preloaded_interpreter


@pytest.fixture(scope="session")
def engine_python() -> Path:
    return engine_env.engine_python()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return build_models()[TINY_LLAMA]


@pytest.fixture(scope="session")
def stand_ins(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    return StandIns(tiny_model, tmp_path_factory.mktemp("stand-ins"))


@pytest.fixture(scope="session")
def ask(engine_python: Path) -> Iterator[Ask]:
    with asking_engine(engine_python) as asked:
        yield asked


@pytest.fixture(scope="session")
def preloaded(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """Interpreter that forks model servers and scripts. It has the packages of suffix decoding."""
    environment = common_environment(engine_python, tmp_path_factory.mktemp("preloaded"))
    environment["PYTHONPATH"] += f":{suffix_packages()}"
    with preloaded_interpreter(engine_python, environment) as interpreter:
        yield interpreter
