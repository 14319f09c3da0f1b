"""Tests what tenants, policies and other clients may do to the operator's objects."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.kinds import (
    AUTOSCALERS,
    CLAIMS,
    DEPLOYMENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    SERVICES,
    Kind,
)
from llmservice_operator.rights import lease_rights, operator_rules, rules
from llmservice_operator.settings import OperatorSettings
from operator_support.accounts import Account
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    CPU_IMAGE,
    Api,
    OperatorProcess,
    condition,
    kubectl,
    make_pods_ready,
    make_service,
    until_pods,
    until_settled,
    writes_nothing,
)
from operator_support.webhook import patched, refused, webhook
from shared_support.waiting import eventually, holds_for

EVERY_SERVICE_HAS = (DEPLOYMENTS, SERVICES, POD_DISRUPTION_BUDGETS, NETWORK_POLICIES)


@pytest.fixture
def hindered(api: Api, namespace: str, log: Path) -> Iterator[OperatorProcess]:
    """An operator for a namespace in which the test may forbid anything."""
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as process:
        yield process.until_leading()


def until_reason(api: Api, namespace: str, name: str, reason: str) -> str:
    """Wait for the reason of Ready; return its message."""

    def told() -> str:
        found = condition(api.get(LLMSERVICES, namespace, name), "Ready")
        assert found["reason"] == reason, found
        message: str = found["message"]
        return message

    return eventually(told)


def missing(api: Api, namespace: str, name: str) -> list[Kind]:
    return [kind for kind in EVERY_SERVICE_HAS if api.read(kind, namespace, name) is None]


def nested(levels: int) -> str:
    return '{"f:a":' * levels + "{}" + "}" * levels


BAD_ENTRIES = [
    pytest.param('{"operation": "Update", "fieldsV1": {"f:metadata": {}}}', id="no manager"),
    pytest.param(
        f'{{"manager": "x", "operation": "Update", "fieldsV1": {nested(9000)}}}', id="deep"
    ),
    pytest.param(
        '{"manager": "llmservice-operator", "operation": "Apply", "fieldsV1":'
        f' {{"f:spec": {{"f:ports": {nested(9000)}}}}}}}',
        id="deep and in our name",
    ),
]


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_no_field_ownership_that_a_tenant_may_store_stops_the_operator(
    api: Api, namespace: str, log: Path, name: str, entry: str
) -> None:
    entry = f'{{"apiVersion": "v1", "fieldsType": "FieldsV1", {entry[1:]}'
    metadata = {
        "name": "bad",
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "llmservice-operator"},
        "managedFields": ["ENTRY"],
    }
    bad = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"ports": [{"port": 80}]},
    }
    file = log.parent / "bad.yaml"
    file.write_text(json.dumps(bad).replace('"ENTRY"', entry))
    kubectl("create", "--validate=false", "-f", str(file))
    sys.setrecursionlimit(25_000)
    stored = kubectl("get", "--raw", SERVICES.path(namespace, "bad"))
    assert stored.count('"f:a"') == entry.count('"f:a"')
    managers = [it.get("manager") for it in json.loads(stored)["metadata"]["managedFields"]]
    assert json.loads(entry).get("manager") in managers, "it is stored no more: find another"
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as operator:
        operator.until_leading()
        # The operator now also receives the object as a watch event.
        kubectl("annotate", "-n", namespace, "service", "bad", "a=b")
        api.create(LLMSERVICES, make_service(name, namespace))
        eventually(lambda: not missing(api, namespace, name))
        api.delete(SERVICES, namespace, name)
        eventually(lambda: not missing(api, namespace, name), 5)
        assert operator.metric("llmservice_watch_restarts_total") == 0
        assert operator.terminate() == 0


@pytest.mark.parametrize("target", [1000, 2000])
def test_an_amount_that_is_stored_in_another_form_is_written_once(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str, target: int
) -> None:
    scaling = {
        "maxReplicas": 2,
        "provider": "External",
        "metric": "RequestsWaiting",
        "targetRequestsWaiting": target,
    }
    api.create(LLMSERVICES, make_service(name, namespace, autoscaling=scaling))
    live = eventually(lambda: api.get(AUTOSCALERS, namespace, name))
    assert "000" not in str(live["spec"]["metrics"])
    # The service's status changes once the HPA's controller has reported its first conditions,
    # which takes some time.
    eventually(
        lambda: all(
            "conditions" in each["status"] for each in api.list_all(AUTOSCALERS, namespace)
        ),
    )
    until_settled(own_operator)
    version = api.get(AUTOSCALERS, namespace, name)["metadata"]["resourceVersion"]
    with writes_nothing(own_operator):
        api.patch(LLMSERVICES, namespace, name, {"metadata": {"labels": {"team": "search"}}})
        until_settled(own_operator, 2)
    assert api.get(AUTOSCALERS, namespace, name)["metadata"]["resourceVersion"] == version


def mirror(live: dict[str, Any]) -> dict[str, Any]:
    image = live["spec"]["template"]["spec"]["containers"][0]["image"]
    path = "/spec/template/spec/containers/0/image"
    if image.startswith("mirror.example/"):
        return {}
    return patched({"op": "replace", "path": path, "value": f"mirror.example/{image}"})


def test_a_mirrored_image_is_served_and_reported_and_written_once(
    api: Api, namespace: str, hindered: OperatorProcess, name: str, tmp_path: Path
) -> None:
    with webhook(api, namespace, "deployments", "apps", tmp_path, mirror):
        eventually(lambda: api.create(LLMSERVICES, make_service(name, namespace)))
        until_pods(api, namespace, name, 1)
        make_pods_ready(api, namespace, name)
        until_reason(api, namespace, name, "Serving")
        until_settled(hindered, 2)
        live = api.get(DEPLOYMENTS, namespace, name)
        image = live["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image == f"mirror.example/{CPU_IMAGE}"
        told = condition(api.get(LLMSERVICES, namespace, name), "Progressing")["message"]
        assert "containers[name=server].image" in told
        assert f'"mirror.example/{CPU_IMAGE}", and the operator sends "{CPU_IMAGE}"' in told
        assert "An admission webhook of the cluster rewrites it" in told
        assert hindered.metric("llmservice_apply_total", kind="Deployment", result="changed") <= 1

        # An edit of another field is undone immediately, as always.
        edit = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}
        api.patch(DEPLOYMENTS, namespace, name, edit)

        def restored() -> bool:
            template = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]["spec"]
            return bool(template["terminationGracePeriodSeconds"] != 1)

        eventually(restored, 5)


def stamp(live: dict[str, Any]) -> dict[str, Any]:
    """Set a field of the operator to a new value at every write."""
    value = str(time.time_ns() % 1000 + 1)
    return patched({"op": "replace", "path": "/spec/ports/0/targetPort", "value": int(value)})


def test_a_webhook_that_writes_something_new_each_time_causes_no_storm(
    api: Api, namespace: str, hindered: OperatorProcess, name: str, tmp_path: Path
) -> None:
    with webhook(api, namespace, "services", "", tmp_path, stamp) as reviewed:
        eventually(lambda: api.create(LLMSERVICES, make_service(name, namespace)))
        eventually(lambda: name in reviewed)
        holds_for(5, lambda: reviewed.count(name) < 12)
        assert missing(api, namespace, name) == []


def test_a_webhooks_refusal_is_in_the_status_and_hinders_no_other_child(
    api: Api, namespace: str, hindered: OperatorProcess, name: str, tmp_path: Path
) -> None:
    def refuse(_: dict[str, Any]) -> dict[str, Any]:
        return refused("network policies come from the platform team")

    group = NETWORK_POLICIES.group
    with webhook(api, namespace, "networkpolicies", group, tmp_path, refuse):
        eventually(lambda: api.create(LLMSERVICES, make_service(name, namespace)))
        told = until_reason(api, namespace, name, "ObjectRefused")
        assert "network policies come from the platform team" in told
        eventually(lambda: missing(api, namespace, name) == [NETWORK_POLICIES])


def test_a_quota_on_deployments_hinders_no_other_child(
    api: Api, namespace: str, hindered: OperatorProcess, name: str
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/deployments.apps": "0"}}}
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.request("POST", path, quota)

    def counts() -> bool:
        return "hard" in api.request("GET", f"{path}/none").get("status", {})

    eventually(counts)
    api.create(LLMSERVICES, make_service(name, namespace))
    told = until_reason(api, namespace, name, "QuotaExceeded")
    assert "exceeded quota: none" in told
    eventually(lambda: missing(api, namespace, name) == [DEPLOYMENTS])
    assert "deployments" in told


def test_a_limit_range_that_refuses_the_claim_is_in_the_status(
    api: Api, namespace: str, hindered: OperatorProcess, name: str
) -> None:
    limits = [{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]
    path = f"/api/v1/namespaces/{namespace}/limitranges"
    api.request("POST", path, {"metadata": {"name": "small"}, "spec": {"limits": limits}})
    cache = {"type": "PersistentVolumeClaim", "size": "5Gi"}
    model = {"uri": "hf://org/model", "cache": cache}
    api.create(LLMSERVICES, make_service(name, namespace, model=model))
    told = until_reason(api, namespace, name, "LimitRangeExceeded")
    assert "maximum storage usage per PersistentVolumeClaim is 1Gi" in told
    assert missing(api, namespace, name) == []


def test_a_missing_namespace_is_reported_and_the_other_one_is_served(
    api: Api, namespace: str, log: Path, name: str, account: Account
) -> None:
    own = rules(lease_rights("llmservice-operator"))
    # The chart grants the rights in each namespace, so they are deleted with the namespace.
    kubeconfig = account(operator_rules(OperatorSettings()), own, everywhere=False)
    watched = f"{namespace},gone-{namespace}"
    settings = {"WATCH_NAMESPACES": watched, "KUBECONFIG": kubeconfig}
    with ForkedOperator(log, namespace, **settings) as operator:
        operator.until_leading()
        status, text = operator.get("/readyz")
        assert status == 200
        assert f"remove gone-{namespace} from watchNamespaces" in text
        api.create(LLMSERVICES, make_service(name, namespace))
        eventually(lambda: not missing(api, namespace, name))
        assert operator.terminate() == 0


def test_a_claim_that_is_still_being_deleted_is_waited_for_and_the_status_says_so(
    api: Api, namespace: str, hindered: OperatorProcess, name: str
) -> None:
    cache = {
        "type": "PersistentVolumeClaim",
        "size": "1Gi",
        "retentionPolicy": "Delete",
    }
    model = {"uri": "hf://org/model", "cache": cache}
    api.create(LLMSERVICES, make_service(name, namespace, model=model))
    claim = f"{name}-cache"
    eventually(lambda: api.read(CLAIMS, namespace, claim))
    held = {"metadata": {"finalizers": ["example.com/draining"]}}
    api.patch(CLAIMS, namespace, claim, held)
    api.delete(LLMSERVICES, namespace, name)

    def going() -> bool:
        return "deletionTimestamp" in api.get(CLAIMS, namespace, claim)["metadata"]

    eventually(going)
    api.create(LLMSERVICES, make_service(name, namespace, model=model))
    told = until_reason(api, namespace, name, "ObjectTerminating")
    assert f"PersistentVolumeClaim {claim}" in told
    api.patch(CLAIMS, namespace, claim, {"metadata": {"finalizers": None}})

    def made_anew() -> bool:
        return "deletionTimestamp" not in api.get(CLAIMS, namespace, claim)["metadata"]

    eventually(made_anew)


def test_another_manager_of_a_field_is_named_when_its_field_prevents_a_change(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    eventually(lambda: not missing(api, served, name))
    until_settled(operator)
    theirs = {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": DEPLOYMENTS.kind,
        "metadata": {"name": name, "namespace": served},
        "spec": {"strategy": {"rollingUpdate": {"maxSurge": 1}}},
    }
    api.request(
        "PATCH",
        DEPLOYMENTS.path(served, name),
        theirs,
        "application/apply-patch+yaml",
        fieldManager="gitops",
        force="true",
    )
    strategy = {"spec": {"rolloutStrategy": {"type": "Recreate"}}}
    api.patch(LLMSERVICES, served, name, strategy)
    told = until_reason(api, served, name, "FieldConflict")
    assert "The manager gitops owns spec.strategy.rollingUpdate" in told


def test_a_status_is_written_even_if_the_crd_is_older_than_the_operator(
    api: Api, namespace: str, hindered: OperatorProcess, name: str
) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/llmservices.llmservice.dev"
    crd = api.request("GET", path)
    schema = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties"
    removed = [{"op": "remove", "path": f"{schema}/gpus"}]
    columns = [
        {"op": "remove", "path": f"/spec/versions/0/additionalPrinterColumns/{index}"}
        for index, column in reversed(
            list(enumerate(crd["spec"]["versions"][0].get("additionalPrinterColumns", [])))
        )
        if "gpus" in column["jsonPath"]
    ]
    api.request("PATCH", path, [*removed, *columns], "application/json-patch+json")
    try:
        api.create(LLMSERVICES, make_service(name, namespace))

        def written() -> dict[str, Any]:
            status: dict[str, Any] = api.get(LLMSERVICES, namespace, name)["status"]
            assert status["conditions"]
            assert "gpus" not in status
            return status

        eventually(written)

        def told() -> bool:
            status, text = hindered.get("/readyz")
            assert status == 200
            return "lacks status.gpus" in text and "apply crds/llmservice.yaml" in text

        eventually(told)
    finally:
        current = api.request("GET", path)["metadata"]["resourceVersion"]
        restored = {**crd, "metadata": {**crd["metadata"], "resourceVersion": current}}
        api.request("PUT", path, restored)
        # The API server takes up the schema later. Until then it would drop the field for the
        # tests that follow.
        change = {"status": {"gpus": 0}}
        eventually(
            lambda: "gpus" in api.patch(LLMSERVICES, namespace, name, change, "status")["status"]
        )
