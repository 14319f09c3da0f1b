"""Tests how the work of keys is compared."""

import pytest

from llmservice_operator.routing import shares
from llmservice_operator.routing.shares import SHARE_SECONDS, Shares


def of(**works: float) -> Shares:
    made = Shares()
    for key, seconds in works.items():
        made.add(key, seconds, 0.0)
    return made


def test_work_fades() -> None:
    made = of(a=10.0)
    assert made.work("a", 0.0) == 10.0
    assert 3 < made.work("a", SHARE_SECONDS) < 4
    assert made.work("b", 0.0) == 0.0


@pytest.mark.parametrize(
    ("works", "is_exceeded"),
    [
        ({"a": 10.0}, False),
        ({"a": 10.0, "b": 9.0}, False),
        ({"a": 10.0, "b": 1.0}, True),
        ({"a": 10.0, "b": 1.0, "c": 1.0, "d": 1.0}, True),
        ({"a": 10.0, "b": 10.0, "c": 1.0}, False),
        ({"a": 10.0, "b": 0.01, "c": 0.01}, False),
        ({"b": 10.0}, False),
    ],
)
def test_a_key_exceeds_its_share_by_much_more_work_than_the_mean_of_active_keys(
    works: dict[str, float], is_exceeded: bool
) -> None:
    assert of(**works).is_exceeded("a", 0.0) is is_exceeded


def test_the_number_of_remembered_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST_KEYS", 3)
    made = of(a=1.0, b=1.0, c=1.0)
    made.add("a", 1.0, 1.0)
    made.add("d", 1.0, 1.0)
    assert len(made) == 3
    assert made.work("b", 1.0) == 0.0
    assert made.work("a", 1.0) > 1.0
