"""The switch that rewrites golden files."""

from contextlib import suppress

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    # The chart's tests have the same switch; whichever comes first declares it.
    with suppress(ValueError):
        parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden", default=False))
