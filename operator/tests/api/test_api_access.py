"""Tests changes of a running service with kubectl: each has its effect, and no other."""

import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmservice_operator.kinds import (
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    SERVICES,
)
from operator_support.processes import (
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_service,
    until_settled,
    writes_nothing,
)
from shared_support.waiting import eventually


def created(api: Api, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """Create a service; return its Deployment once the Deployment exists."""
    api.create(LLMSERVICES, make_service(name, namespace, **spec))
    return eventually(lambda: api.read(DEPLOYMENTS, namespace, name), 15) or {}


def replicas(api: Api, namespace: str, name: str) -> int:
    found: int = api.get(DEPLOYMENTS, namespace, name)["spec"]["replicas"]
    return found


def template(api: Api, namespace: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]
    return found


def reason(api: Api, namespace: str, name: str) -> str:
    found: str = condition(api.get(LLMSERVICES, namespace, name), "Ready")["reason"]
    return found


def test_every_object_gets_the_labels_of_the_spec_loses_them_again_and_keeps_those_of_others(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    pods_before = created(api, served, name)["spec"]["template"]
    others = {"metadata": {"labels": {"audit": "yes"}}}

    def labelled(expected: str | None) -> bool:
        for kind in (DEPLOYMENTS, SERVICES, NETWORK_POLICIES, POD_DISRUPTION_BUDGETS):
            metadata = api.get(kind, served, name)["metadata"]
            assert metadata["labels"].get("team") == expected
            assert metadata.get("annotations", {}).get("a.b/c") == expected
            assert metadata["labels"]["app.kubernetes.io/instance"] == name
            assert metadata["labels"].get("audit") == "yes"
        return True

    until_settled(operator)
    for kind in (DEPLOYMENTS, SERVICES, NETWORK_POLICIES, POD_DISRUPTION_BUDGETS):
        api.patch(kind, served, name, others)
    for value in ("search", "chat", None):
        own = {"labels": {"team": value}, "annotations": {"a.b/c": value}}
        api.patch(LLMSERVICES, served, name, {"spec": {"objectMetadata": own}})
        eventually(partial(labelled, value), 15)
    assert template(api, served, name) == pods_before


def test_the_service_object_can_change_its_type_and_port_and_back(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    created(api, served, name)
    local = {"externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["198.51.100.0/24"]}
    changes: tuple[dict[str, Any], ...] = (
        {"type": "NodePort", "port": 8080, "annotations": {"example.com/scheme": "internal"}},
        {"type": "LoadBalancer", "port": 443},
        {"type": "LoadBalancer", "port": 443, **local},
        {"type": "NodePort", "port": 443, "externalTrafficPolicy": "Local"},
        {"type": "NodePort", "port": 443},
        {"type": "LoadBalancer", "port": 443, **local},
        {"type": "NodePort", "port": 443, "nodePort": 31321},
        {"type": "LoadBalancer", "port": 443, "nodePort": 31321, "loadBalancerClass": "a.b/vip"},
        {"type": "NodePort", "port": 443},
        {"type": "ClusterIP", "port": 80},
    )
    for wanted in changes:
        replace = [{"op": "replace", "path": "/spec/service", "value": wanted}]
        path = LLMSERVICES.path(served, name)
        api.request("PATCH", path, replace, "application/json-patch+json")

        def follows(wanted: dict[str, Any] = wanted) -> bool:
            live = api.get(SERVICES, served, name)
            (port,) = live["spec"]["ports"]
            assert (live["spec"]["type"], port["port"]) == (wanted["type"], wanted["port"])
            assert port["targetPort"] == "api"
            assert live["metadata"].get("annotations") == wanted.get("annotations")
            by_default = None if wanted["type"] == "ClusterIP" else "Cluster"
            policy = wanted.get("externalTrafficPolicy", by_default)
            assert live["spec"].get("externalTrafficPolicy") == policy
            ranges = wanted.get("loadBalancerSourceRanges")
            assert live["spec"].get("loadBalancerSourceRanges") == ranges
            assert live["spec"].get("loadBalancerClass") == wanted.get("loadBalancerClass")
            assert port.get("nodePort") == wanted.get("nodePort", port.get("nodePort"))
            return ("nodePort" in port) is (wanted["type"] != "ClusterIP")

        eventually(follows)
        until_settled(operator)


def test_a_rotation_of_the_api_keys_changes_no_object(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str
) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    secret = {"metadata": {"name": name}, "stringData": {"alice": "first"}}
    api.request("POST", secrets, secret)
    auth = {"apiKeysSecretRef": {"name": name}}
    before = created(api, namespace, name, auth=auth)["spec"]["template"]
    until_settled(own_operator)
    with writes_nothing(own_operator):
        path, merge = f"{secrets}/{name}", "application/merge-patch+json"
        api.request("PATCH", path, {"stringData": {"alice": "second"}}, merge)
        label = {"metadata": {"labels": {"look": "again"}}}
        api.patch(LLMSERVICES, namespace, name, label)
        until_settled(own_operator)
    assert template(api, namespace, name) == before


@pytest.mark.causes("Suspended")
def test_a_suspended_service_keeps_everything_except_its_pods_and_resumes_unchanged(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    before = created(api, served, name, replicas=2)["spec"]["template"]
    api.patch(LLMSERVICES, served, name, {"spec": {"suspend": True}})
    eventually(lambda: replicas(api, served, name) == 0)
    eventually(lambda: reason(api, served, name) == "Suspended")
    api.get(SERVICES, served, name)
    kubectl("scale", "llm", name, "-n", served, "--replicas=3")
    until_settled(operator)
    assert replicas(api, served, name) == 0
    api.patch(LLMSERVICES, served, name, {"spec": {"suspend": False}})
    eventually(lambda: replicas(api, served, name) == 3)
    assert template(api, served, name) == before


def test_kubectl_scale_works_without_replicas_in_the_spec(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    created(api, served, name)
    kubectl("scale", "llm", name, "-n", served, "--replicas=2")
    eventually(lambda: replicas(api, served, name) == 2)


def test_kubectl_scale_below_the_budget_is_refused_with_the_remedy(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    created(api, served, name, replicas=3, podDisruptionBudget={"minAvailable": 2})
    printed = kubectl("scale", "llm", name, "-n", served, "--replicas=2", check=False)
    assert "podDisruptionBudget.minAvailable" in printed
    assert "must be less than the number of replicas" in printed
    kubectl("scale", "llm", name, "-n", served, "--replicas=0")
    eventually(lambda: replicas(api, served, name) == 0)


@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_kubectl_diff_is_clean_after_an_apply(
    api: Api,
    operator: OperatorProcess,
    served: str,
    name: str,
    tmp_path: Path,
    options: tuple[str, ...],
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(make_service(name, served)))
    kubectl("apply", *options, "-f", str(file))
    eventually(lambda: api.read(DEPLOYMENTS, served, name))
    until_settled(operator)
    printed = subprocess.run(
        ["kubectl", "diff", *options, "-f", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (printed.returncode, printed.stdout) == (0, ""), printed


def test_kubectl_rollout_works_on_the_deployment(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    created(api, served, name)
    deployment = f"deployment/{name}"
    kubectl("rollout", "restart", deployment, "-n", served)
    until_settled(operator)
    annotations = template(api, served, name)["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations

    def two_revisions() -> bool:
        history = kubectl("rollout", "history", deployment, "-n", served)
        return len([line for line in history.splitlines() if line[:1].isdigit()]) == 2

    eventually(two_revisions)
    status = kubectl("rollout", "status", deployment, "-n", served, "--watch=false")
    assert "Waiting for deployment" in status
