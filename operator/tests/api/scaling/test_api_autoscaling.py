"""Tests autoscaling with the cluster's own HorizontalPodAutoscaler controller."""

from typing import Any

import pytest

from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES
from operator_support.processes import (
    Api,
    ApiError,
    OperatorProcess,
    kubectl,
    make_service,
    until_settled,
    writes_nothing,
)
from shared_support.waiting import eventually, holds_for

HPA_SECONDS = 45.0
"""Time limit in seconds. The controller processes each autoscaler every 15 s, and has a queue."""


def replicas(api: Api, namespace: str, name: str) -> int:
    found: int = api.get(DEPLOYMENTS, namespace, name)["spec"]["replicas"]
    return found


def until_replicas(api: Api, namespace: str, name: str, number: int, timeout: float = 15) -> None:
    eventually(
        lambda: replicas(api, namespace, name) == number, timeout, f"{number} replicas of {name}"
    )


def owners_of_replicas(api: Api, namespace: str, name: str) -> set[str]:
    entries = api.get(DEPLOYMENTS, namespace, name)["metadata"]["managedFields"]
    return {
        entry["manager"] for entry in entries if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }


def switch_on(api: Api, namespace: str, name: str, **autoscaling: Any) -> None:
    change = {"replicas": None, "autoscaling": {"maxReplicas": 8, **autoscaling}}
    api.patch(LLMSERVICES, namespace, name, {"spec": change})


def test_kubectl_scale_is_refused_with_what_to_change_instead(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, autoscaling={"maxReplicas": 3}))
    said = kubectl("-n", served, "scale", f"llm/{name}", "--replicas=2", check=False)
    assert "cannot be set with autoscaling" in said
    assert "autoscaling.minReplicas and autoscaling.maxReplicas" in said


def test_both_replicas_and_autoscaling_are_refused(api: Api, namespace: str, name: str) -> None:
    with pytest.raises(ApiError) as refused:
        api.create(
            LLMSERVICES, make_service(name, namespace, replicas=2, autoscaling={"maxReplicas": 3})
        )
    assert "spec.replicas" in refused.value.message


def test_an_autoscaled_service_starts_with_its_minimum_and_its_hpa_settles(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str
) -> None:
    scaling = {"minReplicas": 3, "maxReplicas": 8}
    api.create(LLMSERVICES, make_service(name, namespace, autoscaling=scaling))
    hpa = eventually(lambda: api.read(AUTOSCALERS, namespace, name))
    assert hpa is not None
    assert hpa["metadata"]["ownerReferences"][0]["name"] == name
    assert hpa["spec"]["minReplicas"] == 3
    until_settled(own_operator)
    assert replicas(api, namespace, name) == 3
    assert "llmservice-operator" not in owners_of_replicas(api, namespace, name)
    with writes_nothing(own_operator):
        api.patch(LLMSERVICES, namespace, name, {"metadata": {"labels": {"team": "search"}}})
        until_settled(own_operator)


def test_switching_autoscaling_on_and_off_never_drops_a_replica(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served, replicas=3))
    until_replicas(api, served, name, 3)
    seen: list[int] = []

    def watch(seconds: float, least: int) -> None:
        def at_least() -> bool:
            seen.append(replicas(api, served, name))
            return seen[-1] >= least

        holds_for(seconds, at_least)

    switch_on(api, served, name)
    watch(3, least=3)
    assert owners_of_replicas(api, served, name) == {"llmservice-operator-handover"}

    # Even without metrics, the HPA controller raises the replicas to the new minimum.
    switch_on(api, served, name, minReplicas=5)
    until_replicas(api, served, name, 5, HPA_SECONDS)
    assert owners_of_replicas(api, served, name) == {"kube-controller-manager"}
    until_settled(operator)

    api.patch(LLMSERVICES, served, name, {"spec": {"autoscaling": None}})
    watch(3, least=5)
    eventually(lambda: api.read(AUTOSCALERS, served, name) is None)
    assert "llmservice-operator" in owners_of_replicas(api, served, name)
    assert replicas(api, served, name) == 5

    switch_on(api, served, name)
    watch(3, least=5)
    api.patch(LLMSERVICES, served, name, {"spec": {"autoscaling": None, "replicas": 6}})
    until_replicas(api, served, name, 6)
    watch(1, least=6)
    assert min(seen) >= 3
