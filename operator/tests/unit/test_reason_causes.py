"""Tests that every reason has a test that causes it, with a real API server, cluster or engine, or
with a record of a real one.
"""

import pytest

from llmservice_operator.api.reasons import Reason
from operator_support.causes import Cause, causes_in, causes_of
from operator_support.services import REPOSITORY

MARKED = """
import pytest

@pytest.mark.causes({})
async def test_x():
    assert reason == "Serving" and other is Reason.SUSPENDED
"""


@pytest.fixture(scope="module")
def caused() -> set[Reason]:
    return {each.reason for each in causes_in(REPOSITORY)}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_caused_by_a_test(reason: Reason, caused: set[Reason]) -> None:
    assert reason in caused, (
        f"No test causes {reason}: write one that does, and mark it with "
        f'@pytest.mark.causes("{reason}").'
    )


def test_a_mark_names_reasons_by_word_or_by_member() -> None:
    found = list(causes_of(MARKED.format('"Serving", Reason.SUSPENDED'), "t.py"))
    assert found == [
        Cause(Reason.SERVING, "t.py::test_x"),
        Cause(Reason.SUSPENDED, "t.py::test_x"),
    ]


def test_a_parameter_of_a_test_may_have_a_mark_of_its_own() -> None:
    parameter = 'pytest.param("Serving", marks=pytest.mark.causes("Serving"))'
    source = MARKED.replace("causes({})", f'parametrize("it", [{parameter}])')
    assert list(causes_of(source, "t.py")) == [Cause(Reason.SERVING, "t.py::test_x")]


@pytest.mark.parametrize("word", ['"Tired"', "Reason.TIRED", "reason"])
def test_a_mark_with_an_unknown_word_is_named(word: str) -> None:
    with pytest.raises(ValueError, match=r"test_x is marked to cause .* declares no such reason"):
        list(causes_of(MARKED.format(word), "t.py"))


def test_a_test_that_never_looks_for_its_reason_is_named() -> None:
    with pytest.raises(ValueError, match="marked to cause Paused and never looks for it"):
        list(causes_of(MARKED.format('"Paused"'), "t.py"))


def test_a_mark_that_pytest_never_runs_is_named() -> None:
    with pytest.raises(ValueError, match="helper causes a reason and is no test"):
        list(causes_of(MARKED.format('"Serving"').replace("test_x", "helper"), "t.py"))
