"""Settings and options of all test tiers.

Hypothesis has no deadlines, and an option rewrites the golden files.
"""

import pytest
from hypothesis import settings

# The duration of an example depends more on the load of the machine than on the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True if this run rewrites the golden files instead of comparing with them."""
    return bool(request.config.getoption("--update-golden"))
