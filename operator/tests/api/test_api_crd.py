from collections.abc import Mapping
from typing import Any

import pytest

from llmservice_operator.api.crd import build_crd
from llmservice_operator.kinds import LLMSERVICES
from operator_support.processes import EXAMPLES, Api, kubectl, make_service

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmservices.llmservice.dev"


def test_the_crd_is_established_and_structural(api: Api) -> None:
    status = api.request("GET", CRD_PATH)["status"]
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"
    assert status["acceptedNames"]["shortNames"] == ["llmsvc", "llm"]


def with_rules_twice(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with every rule in it twice."""
    doubled = dict(schema)
    if rules := schema.get("x-kubernetes-validations"):
        doubled["x-kubernetes-validations"] = rules * 2
    if fields := schema.get("properties"):
        doubled["properties"] = {name: with_rules_twice(each) for name, each in fields.items()}
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            doubled[inner] = with_rules_twice(schema[inner])
    return doubled


def test_a_crd_with_every_rule_twice_is_within_the_budget_of_a_new_one(api: Api) -> None:
    """Test a new CRD, because the API server allows an existing CRD to exceed its budget for CEL.

    The API server does not report how much of the budget a CRD uses. So every rule is included
    twice: if this CRD is accepted, the real one is well within the budget.
    """
    crd = build_crd()
    crd["metadata"]["name"] = "llmservices.budget.example.com"
    crd["spec"]["group"] = "budget.example.com"
    (version,) = crd["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    version["schema"]["openAPIV3Schema"] = with_rules_twice(schema)
    made = api.request("POST", CRD_PATH.rpartition("/")[0], crd, dryRun="All")
    assert made["spec"]["group"] == "budget.example.com"


@pytest.mark.parametrize(
    "example", sorted(path.name for path in EXAMPLES.glob("*.yaml")) or ["none found"]
)
def test_every_example_is_accepted_strictly(example: str, namespace: str) -> None:
    printed = kubectl(
        *("create", "--validate=strict", "--dry-run=server", "-n", namespace, "-o", "name"),
        *("-f", str(EXAMPLES / example)),
    )
    assert printed.startswith("llmservice.llmservice.dev/")


def test_a_server_side_dry_run_shows_the_defaults_and_stores_nothing(
    api: Api, namespace: str
) -> None:
    service = make_service("dry", namespace)
    del service["spec"]["accelerator"]
    stored = api.create(LLMSERVICES, service, dryRun="All")
    assert stored["spec"]["accelerator"]["type"] == "nvidia"
    assert api.read(LLMSERVICES, namespace, "dry") is None
