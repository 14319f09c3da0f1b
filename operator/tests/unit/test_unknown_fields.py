"""Tests that an unknown field is refused with the name of the field to set instead."""

from typing import Any

import pytest

from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.api.unknown_fields import ADVICE, field_paths
from operator_support.services import a_body


def said(spec: dict[str, Any]) -> str:
    (problem,) = LLMService.problems(a_body(spec))
    return str(problem)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"maxModelLen": 4096},
            "spec.maxModelLen: is not a field of an LLMService at this place: set "
            "engine.maxModelLen instead",
        ),
        (
            {"engine": {"toleratons": []}},
            "spec.engine.toleratons: is not a field of an LLMService: did you mean "
            "template.tolerations?",
        ),
        (
            {"engine": {"tensorParallelSize": 2}},
            "spec.engine.tensorParallelSize: is not a field of an LLMService: set "
            "engine.parallelism.tensor instead",
        ),
        (
            {"minReplicas": 1},
            "spec.minReplicas: is not a field of an LLMService at this place: set "
            "autoscaling.minReplicas instead",
        ),
        (
            {"frobnicate": 1},
            "spec.frobnicate: is not a field of an LLMService: correct its name or its "
            "indentation; `kubectl explain llmservice.spec --recursive` lists all fields",
        ),
    ],
    ids=["misplaced", "misspelled", "another project's", "of two depths", "unlike any"],
)
def test_an_unknown_field_leads_to_the_one_that_was_meant(
    spec: dict[str, Any], sentence: str
) -> None:
    assert said(spec) == sentence


@pytest.mark.parametrize("advice", ADVICE)
def test_the_advice_names_fields_that_there_are(advice: str) -> None:
    known = set(field_paths(LLMServiceSpec))
    words = {word.strip(",;") for word in advice.split(", from ")[0].split(";")[0].split()}
    named = {word for word in words if word in known or "." in word}
    assert named <= known
    assert named or advice.startswith(("remove it, because ", "move the fields "))


def test_advice_is_given_only_on_names_that_are_no_field() -> None:
    tops = {path for path in field_paths(LLMServiceSpec) if "." not in path}
    assert not tops & {name for names in ADVICE.values() for name in names}
