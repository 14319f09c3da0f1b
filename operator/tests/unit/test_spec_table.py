"""Tests that `render`, without an API server, accepts and refuses specs as an API server does."""

import pytest

from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.engine_flags import accepted_flags
from llmservice_operator.desired.flag_tables import TABLES, FlagKind
from operator_support.services import HARMLESS_FLAG, HARMLESS_SWITCH, a_body
from operator_support.spec_fields import ROOT, rules_of
from spec_table import ACCEPTED, REFUSED, Refused

TAKEN_BY_PYTHON = {
    # Values of a wrong YAML type that Python converts to the right type.
    "access: a service that is suspended in words",
    "engine: chunked prefill in words",
    "model: remote code that is allowed in words",
    "pods: replicas that are a truth value",
    # Lists that the API server merges as maps, so that each key may occur once.
    "container: a variable that is given twice",
    "engine: a pull secret that is given twice",
    "pods: a spread that is given twice",
}
"""Cases that only the API server refuses. They are harmless, because it checks every spec later."""


@pytest.mark.parametrize("sentence", REFUSED)
def test_python_refuses_the_specs_that_the_api_server_refuses(sentence: str) -> None:
    if sentence in TAKEN_BY_PYTHON:
        assert is_taken(REFUSED[sentence]), "remove it from the list"
    else:
        assert not is_taken(REFUSED[sentence])


def test_every_rule_of_the_crd_refuses_a_spec_of_the_table() -> None:
    said = "\n".join(case.says for case in REFUSED.values())
    unused = {rule["message"] for rule in rules_of(ROOT) if rule["message"] not in said}
    assert unused == set(), "add a spec that breaks the rule to specs/refused"


def is_taken(case: Refused) -> bool:
    body = {**a_body(case.spec), **(case.body or {})}
    if case.name is not None:
        body["metadata"] = {"name": case.name}
    return not LLMService.problems(body)


@pytest.mark.parametrize("sentence", ACCEPTED)
def test_python_accepts_the_specs_that_the_api_server_accepts(sentence: str) -> None:
    assert LLMService.problems(a_body(ACCEPTED[sentence])) == []


@pytest.mark.parametrize(
    ("flag", "kind"), [(HARMLESS_FLAG, FlagKind.VALUE), (HARMLESS_SWITCH, FlagKind.SWITCH)]
)
def test_the_harmless_flags_of_the_tests_are_in_every_version_and_accepted(
    flag: str, kind: FlagKind
) -> None:
    for version, table in TABLES.items():
        assert flag in accepted_flags(table), (
            f"vLLM {version} or a field took {flag}: choose another in operator_support/services.py"
        )
        assert table[flag].kind is kind, f"vLLM {version}: choose another one"
