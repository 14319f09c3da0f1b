"""Tests the objects of the examples on a real API server."""

from typing import Any

import yaml

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.processes import EXAMPLES, Api, OperatorProcess, until_settled, writes_nothing
from shared_support.waiting import eventually


def test_every_example_is_carried_out_and_a_second_pass_writes_nothing(
    api: Api, own_operator: OperatorProcess, namespace: str
) -> None:
    examples = [yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*.yaml"))]
    for example in examples:
        example["metadata"]["namespace"] = namespace
        api.create(LLMSERVICES, example, fieldValidation="Strict")

    def carried_out() -> bool:
        for example in examples:
            service = api.get(LLMSERVICES, namespace, example["metadata"]["name"])
            assert reasons(service) & {"InvalidSpec", "ImmutableField"} == set(), service["status"]
            api.get(DEPLOYMENTS, namespace, example["metadata"]["name"])
        return True

    eventually(carried_out)
    until_settled(own_operator)
    passes = own_operator.metric("controller_runtime_reconcile_total")
    with writes_nothing(own_operator):
        for example in examples:
            name = example["metadata"]["name"]
            api.patch(LLMSERVICES, namespace, name, {"metadata": {"labels": {"again": "yes"}}})
        eventually(
            lambda: (
                own_operator.metric("controller_runtime_reconcile_total") >= passes + len(examples)
            )
        )
        until_settled(own_operator)
    for example in examples:
        api.delete(LLMSERVICES, namespace, example["metadata"]["name"])


def reasons(service: dict[str, Any]) -> set[str]:
    conditions = service.get("status", {}).get("conditions", [])
    assert conditions, "no status yet"
    return {condition["reason"] for condition in conditions}
