"""Tests that a field of another project is refused with a message that names our field."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from llmservice_operator.errors import InvalidSpec
from llmservice_operator.render import render_file
from migration_page import MODEL, Pair, messages, pairs
from operator_support.services import SETTINGS

PAIRS = pairs()


def ids(pair: Pair) -> str:
    return f"{pair.project}: {pair.old}"


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_the_field_of_the_other_project_is_refused_with_what_to_change(pair: Pair) -> None:
    assert pair.messages
    general = "correct its name or its indentation"
    assert [said for said in pair.messages if general in said] == []


@pytest.mark.parametrize("pair", PAIRS, ids=ids)
def test_our_field_is_accepted(pair: Pair) -> None:
    assert messages({**MODEL, **pair.new}) == []


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.new], ids=ids)
def test_the_message_names_our_field(pair: Pair) -> None:
    said = " ".join(pair.messages)
    assert set(names(pair.new)) & set(re.findall(r"[a-zA-Z]+", said)), said


def names(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        yield name
        if isinstance(value, Mapping):
            yield from names(value)


@pytest.mark.parametrize("kind", ["Model", "InferenceService", "LLMInferenceService", "Deployment"])
def test_another_projects_object_leads_to_the_page(kind: str) -> None:
    with pytest.raises(InvalidSpec, match=r"docs/migrating\.md"):
        render_file(f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: x}}\n", SETTINGS)


def test_an_object_of_no_such_project_leads_nowhere() -> None:
    with pytest.raises(InvalidSpec) as refused:
        render_file("apiVersion: v1\nkind: Pod\n", SETTINGS)
    assert str(refused.value) == "apiVersion: must be llmservice.dev/v1alpha1, not 'v1'"
