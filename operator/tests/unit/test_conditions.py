"""Tests the declarations of conditions and reasons."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from llmservice_operator.api.conditions import ConditionType
from llmservice_operator.api.crd import build_crd
from llmservice_operator.api.reason_facts import Facts, Rank, Source, in_commands
from llmservice_operator.api.reasons import Reason

SCHEMA = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_happened_and_what_to_do(reason: Reason) -> None:
    assert re.fullmatch("[A-Z][A-Za-z]+", reason.value)
    for text in (reason.meaning, reason.hint):
        assert re.fullmatch("[A-Z].*[.]", text)
        assert "|" not in text, "it stands in a table"


def test_a_reason_that_can_be_a_problem_of_a_replica_and_has_no_rank_is_named() -> None:
    with pytest.raises(TypeError, match="Tired can be a problem of a replica and has no rank"):
        Facts("Tired", Source.POD, "It sleeps.", "Wait.")


def test_a_rank_that_nothing_would_read_is_refused() -> None:
    with pytest.raises(TypeError, match="Tired has a rank, but its source LOAD reports no problem"):
        Facts("Tired", Source.LOAD, "It sleeps.", "Wait.", rank=Rank.CRASH)


@pytest.mark.parametrize("kind", ConditionType)
def test_every_condition_describes_what_sets_it_and_when_it_is_absent(kind: ConditionType) -> None:
    assert "True" in kind.meaning
    assert kind.set_by
    assert kind.absent


def fields(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield path
    for name, child in schema.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}")


@pytest.mark.parametrize("reason", Reason)
def test_advice_names_fields_that_exist(reason: Reason) -> None:
    known = set(fields(SCHEMA["properties"]["spec"], "spec"))
    assert set(re.findall(r"spec(?:\.[a-zA-Z]+)+", reason.hint)) <= known


@pytest.mark.parametrize("reason", Reason)
def test_a_command_for_logs_works_when_the_name_of_the_service_is_filled_in(reason: Reason) -> None:
    for command in re.findall("kubectl logs[^`]*", in_commands("qwen", reason.hint)):
        assert "deploy/qwen" in command


@pytest.mark.parametrize("reason", Reason)
def test_no_advice_refers_to_the_message_that_contains_it(reason: Reason) -> None:
    assert "see the message" not in reason.hint.lower()
