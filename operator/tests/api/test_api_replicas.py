"""Tests the number of replicas, as server-side apply merges it, after suspension and adoption."""

from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually

SCALED = {"maxReplicas": 4}


def replicas(api: Api, namespace: str, name: str) -> int:
    found: int = api.get(DEPLOYMENTS, namespace, name)["spec"]["replicas"]
    return found


def until_replicas(api: Api, namespace: str, name: str, number: int) -> None:
    eventually(lambda: replicas(api, namespace, name) == number, 15, f"{number} replicas")


def change(api: Api, namespace: str, name: str, **spec: Any) -> None:
    api.patch(LLMSERVICES, namespace, name, {"spec": spec})


@pytest.mark.parametrize("before", [{"replicas": 3}, {"autoscaling": SCALED}], ids=str)
def test_an_orphan_that_is_adopted_with_autoscaling_keeps_its_replicas(
    api: Api, operator: OperatorProcess, served: str, name: str, before: dict[str, Any]
) -> None:
    api.create(LLMSERVICES, make_service(name, served, **before))
    eventually(lambda: api.read(DEPLOYMENTS, served, name))
    until_settled(operator)
    if "autoscaling" in before:
        # An HPA changes the replicas in this way.
        api.patch(DEPLOYMENTS, served, name, {"spec": {"replicas": 3}}, "scale")
    until_replicas(api, served, name, 3)
    api.delete(LLMSERVICES, served, name, propagationPolicy="Orphan")

    def orphaned() -> bool:
        owners = api.get(DEPLOYMENTS, served, name)["metadata"].get("ownerReferences")
        return not owners and api.read(LLMSERVICES, served, name) is None

    # The garbage collector learns of a new kind with its next discovery, every 30 s.
    eventually(orphaned)
    successor = api.create(LLMSERVICES, make_service(name, served, autoscaling=SCALED))

    def adopted() -> bool:
        owners = api.get(DEPLOYMENTS, served, name)["metadata"].get("ownerReferences", [])
        return [owner["uid"] for owner in owners] == [successor["metadata"]["uid"]]

    eventually(adopted)
    until_settled(operator)
    live = api.get(DEPLOYMENTS, served, name)
    assert live["spec"]["replicas"] == 3
    # A smaller number in between would have increased the generation further.
    assert live["metadata"]["generation"] <= 3


def test_a_suspended_service_whose_autoscaling_is_removed_resumes_as_before(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, autoscaling=SCALED))
    eventually(lambda: api.read(DEPLOYMENTS, served, name))
    until_settled(operator)
    api.patch(DEPLOYMENTS, served, name, {"spec": {"replicas": 3}}, "scale")
    until_settled(operator)
    for step, number in (
        ({"suspend": True}, 0),
        ({"autoscaling": None}, 0),
        ({"suspend": False}, 3),
    ):
        change(api, served, name, **step)
        until_replicas(api, served, name, number)
        until_settled(operator)
        assert replicas(api, served, name) == number


def test_a_suspended_service_that_lost_its_status_resumes_as_before(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, autoscaling=SCALED))
    eventually(lambda: api.read(DEPLOYMENTS, served, name))
    until_settled(operator)
    api.patch(DEPLOYMENTS, served, name, {"spec": {"replicas": 3}}, "scale")
    until_settled(operator)
    change(api, served, name, suspend=True)
    until_replicas(api, served, name, 0)
    until_settled(operator)
    api.patch(LLMSERVICES, served, name, {"status": None}, "status")
    until_settled(operator)
    change(api, served, name, suspend=False)
    until_replicas(api, served, name, 3)


def test_a_service_with_an_unknown_engine_is_scaled_and_keeps_its_pods(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, replicas=1))
    eventually(lambda: api.read(DEPLOYMENTS, served, name))
    until_settled(operator)
    before = api.get(DEPLOYMENTS, served, name)
    # A newer operator leaves such a status when it is rolled back to this version.
    engine = {**api.get(LLMSERVICES, served, name)["status"]["engine"], "version": "99.0.0"}
    engine = {key: value for key, value in engine.items() if key != "untried"}
    replaced = [{"op": "replace", "path": "/status/engine", "value": engine}]
    path = LLMSERVICES.path(served, name, "status")
    api.request("PATCH", path, replaced, "application/json-patch+json")
    change(api, served, name, replicas=3)
    until_replicas(api, served, name, 3)
    until_settled(operator)
    live = api.get(DEPLOYMENTS, served, name)
    assert live["spec"]["template"] == before["spec"]["template"]
    assert ours(live)["f:spec"] == ours(before)["f:spec"]
    service = api.get(LLMSERVICES, served, name)
    ready = condition(service, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "99.0.0" in ready["message"]
    assert service["status"]["engine"] == engine


def ours(live: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that the operator has applied."""
    (entry,) = (
        each for each in live["metadata"]["managedFields"] if each["manager"] == names.FIELD_MANAGER
    )
    fields: dict[str, Any] = entry["fieldsV1"]
    return fields
