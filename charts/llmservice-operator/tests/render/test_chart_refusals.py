"""Tests that the chart refuses wrong values and names them."""

import copy
import json
from functools import cache
from typing import Any

import pytest

from chart_support.helm import HelmError, render_text
from llmservice_operator.api.accelerator_class import parse_classes
from llmservice_operator.errors import InvalidSettings
from wrong_values import CLASSES, REFUSED_BY_A_TEMPLATE, REFUSED_BY_THE_SCHEMA


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(HelmError) as refused:
        render_text(values)
    return str(refused.value)


def is_added(values: Any, to: Any) -> bool:
    """Add the values to others, unless both set the same one; return whether they were added."""
    if not isinstance(values, dict) or not isinstance(to, dict):
        return False
    if not all(is_added(values[key], copy.deepcopy(to[key])) for key in values.keys() & to.keys()):
        return False
    for key, value in values.items():
        if key in to:
            is_added(value, to[key])
        else:
            to[key] = copy.deepcopy(value)
    return True


@cache
def refusals() -> tuple[str, ...]:
    """Return the message of Helm for each set of values that the schema refuses, in their order.

    Helm reports all wrong values of a run, so one run checks many of them.
    """
    together: list[dict[str, Any]] = []
    places = []
    for values, _ in REFUSED_BY_THE_SCHEMA:
        fitting = (index for index, each in enumerate(together) if is_added(values, each))
        place = next(fitting, len(together))
        if place == len(together):
            together.append(copy.deepcopy(values))
        places.append(place)
    messages = [refusal(each) for each in together]
    return tuple(messages[place] for place in places)


@pytest.mark.parametrize("number", range(len(REFUSED_BY_THE_SCHEMA)))
def test_the_schema_refuses_a_wrong_value_by_its_name(number: int) -> None:
    assert REFUSED_BY_THE_SCHEMA[number][1] in refusals()[number]


@pytest.mark.parametrize(("values", "message"), REFUSED_BY_A_TEMPLATE, ids=str)
def test_a_template_refuses_a_wrong_combination_by_its_name(
    values: dict[str, Any], message: str
) -> None:
    assert message in refusal(values)


@pytest.mark.parametrize("values", [values for values, _ in CLASSES], ids=str)
def test_the_operator_refuses_the_same_classes(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        parse_classes(json.dumps(values["acceleratorClasses"]), "CLASSES")
