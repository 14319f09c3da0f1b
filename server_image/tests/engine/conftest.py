from pathlib import Path

import pytest

import engine_support
from localkube.hub.models import TINY_LLAMA, build_models


@pytest.fixture(scope="session")
def engine_python() -> Path:
    return engine_support.engine_python()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return build_models()[TINY_LLAMA]
