"""Settings and options of all test tiers.

Hypothesis has no deadlines, the garbage collector ignores what exists before the first test, and an
option rewrites the golden files.
"""

import gc
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The duration of an example depends more on the load of the machine than on the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep the garbage collector from visiting the modules and the collected tests.

    They exist until the process exits. To visit them again and again takes a fifteenth of the CPU
    time of a tier.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True if this run rewrites the golden files instead of comparing with them."""
    return bool(request.config.getoption("--update-golden"))
