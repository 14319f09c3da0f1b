"""Tests that the fault tests change every part of the spec during a kill of the operator."""

import pytest

from llmservice_operator.api.spec import LLMService
from operator_support.crash_flows import BASE, CHANGES
from operator_support.fault_flows import SERVED, children_of, service_of
from operator_support.spec_fields import SCHEMA


def test_each_field_of_the_spec_has_a_change_during_which_the_operator_is_killed() -> None:
    changed = {field for change in CHANGES.values() for field in change}

    missing = sorted(set(SCHEMA["properties"]) - changed)

    assert not missing, f"add a change of {', '.join(missing)} to CHANGES in crash_flows.py"


def test_each_child_that_the_operator_deletes_has_a_change_that_deletes_it() -> None:
    pruned = {child for child in SERVED if child.is_pruned}
    changed = [children_of({**BASE, **change}) for change in CHANGES.values()]

    assert pruned <= {child for children in changed for child in children ^ children_of(BASE)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_begins_with_the_field_that_it_is_about_and_is_a_valid_one(name: str) -> None:
    changed = {**BASE, **CHANGES[name]}

    assert name.split(".")[0].split(":")[0] in CHANGES[name]
    assert changed != BASE
    assert not LLMService.problems(service_of("llm", "team", changed))
