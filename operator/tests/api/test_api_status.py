import re
from typing import Any

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, EVENTS, LLMSERVICES
from operator_support.processes import (
    CPU_IMAGE,
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_pods_ready,
    make_service,
    until_pods,
)
from shared_support.metric_table import differences
from shared_support.waiting import eventually


def until_ready(api: Api, namespace: str, name: str) -> dict[str, Any]:
    def ready() -> dict[str, Any]:
        service = api.get(LLMSERVICES, namespace, name)
        found = condition(service, "Ready")
        assert found["status"] == "True", found
        return service

    return eventually(ready)


@pytest.mark.causes(
    "Serving", "ModelLoaded", "RolloutComplete", "RolloutInProgress", "NoReplicaReady"
)
def test_the_status_follows_the_pods_from_missing_to_ready(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, replicas=2))
    until_pods(api, served, name, 2)

    def waiting() -> bool:
        service = api.get(LLMSERVICES, served, name)
        assert condition(service, "Progressing")["reason"] == "RolloutInProgress"
        assert condition(service, "Available")["reason"] == "NoReplicaReady"
        assert condition(service, "Available")["status"] == "False"
        return bool(condition(service, "Ready")["status"] == "False")

    eventually(waiting)

    make_pods_ready(api, served, name)
    ready = until_ready(api, served, name)
    status = ready["status"]
    assert status["observedGeneration"] == ready["metadata"]["generation"]
    assert status["replicas"] == status["readyReplicas"] == 2
    assert status["url"] == f"http://{name}.{served}.svc"
    assert status["engine"]["image"] == CPU_IMAGE
    assert condition(ready, "Progressing")["status"] == "False"
    assert [found["reason"] for found in status["conditions"]] == [
        *("Serving", "RolloutComplete", "Serving", "ModelLoaded")
    ]
    for found in status["conditions"]:
        assert found["observedGeneration"] == ready["metadata"]["generation"]
        assert re.fullmatch(r"[A-Z][A-Za-z]+", found["reason"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["lastTransitionTime"])
    service = {"namespace": served, "llmservice": name}
    eventually(lambda: operator.metric("llmservice_replicas_ready", **service) == 2)
    shown = operator.metric(
        "llmservice_status_condition", **service, type="Ready", reason="Serving"
    )
    assert shown == 1
    assert differences(operator.metrics(), "Operator", "Operator and metrics server") == []


def test_a_transition_is_recorded_as_an_event_once(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, replicas=1))
    until_pods(api, served, name, 1)
    make_pods_ready(api, served, name)
    until_ready(api, served, name)

    def told() -> list[dict[str, Any]]:
        events = api.list_all(EVENTS, served)
        return [
            event
            for event in events
            if event["involvedObject"]["name"] == name and event["reason"] == "Serving"
        ]

    (event,) = eventually(told)
    assert event["count"] == 1
    assert event["type"] == "Normal"
    described = kubectl("-n", served, "describe", "llm", name)
    assert "Serving" in described


def test_an_argument_whose_flag_has_a_field_works_and_is_an_event_once(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    by_argument = {"extraArgs": ["--seed=7"]}
    api.create(LLMSERVICES, make_service(name, served, engine=by_argument))
    until_pods(api, served, name, 1)
    make_pods_ready(api, served, name)
    progressing = condition(until_ready(api, served, name), "Progressing")
    assert "set spec.engine.seed instead" in progressing["message"]
    (container,) = api.get(DEPLOYMENTS, served, name)["spec"]["template"]["spec"]["containers"]
    assert "--seed=7" in container["args"]

    def is_recorded_once() -> bool:
        events = [
            (event["type"], event["count"])
            for event in api.list_all(EVENTS, served)
            if event["involvedObject"]["name"] == name and event["reason"] == "DeprecatedArgument"
        ]
        assert events == [("Warning", 1)]
        return True

    # The Event is recorded after the status that names the argument.
    eventually(is_recorded_once, 5)


def test_a_status_that_another_client_changed_is_restored(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, replicas=1))
    until_pods(api, served, name, 1)
    make_pods_ready(api, served, name)
    before = until_ready(api, served, name)["status"]
    api.patch(LLMSERVICES, served, name, {"status": {"url": "http://elsewhere"}}, "status")
    eventually(lambda: api.get(LLMSERVICES, served, name)["status"] == before, 5)
