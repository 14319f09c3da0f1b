import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmservice_operator.api.reasons import Reason
from llmservice_operator.children import REQUIRED_KINDS
from llmservice_operator.kinds import (
    DEPLOYMENTS,
    EVENTS,
    LLMSERVICES,
    NETWORK_POLICIES,
    POD_DISRUPTION_BUDGETS,
    PODS,
    SERVICES,
    kind_of,
)
from operator_support.processes import (
    CPU_IMAGE,
    Api,
    OperatorProcess,
    condition,
    make_service,
    until_settled,
    writes_nothing,
)
from shared_support.waiting import eventually, holds_for

EVERY_SERVICE_HAS = (DEPLOYMENTS, SERVICES, POD_DISRUPTION_BUDGETS, NETWORK_POLICIES)
"""Kinds of children that every service has by default."""
RESTORE_SECONDS = 5.0


def until_served(api: Api, namespace: str, name: str) -> dict[str, Any]:
    """Wait for all children and a status of the present generation; return the Deployment."""

    def served() -> dict[str, Any]:
        service = api.get(LLMSERVICES, namespace, name)
        reported = service.get("status", {}).get("observedGeneration")
        assert reported == service["metadata"]["generation"], service.get("status")
        for kind in EVERY_SERVICE_HAS:
            api.get(kind, namespace, name)
        return api.get(DEPLOYMENTS, namespace, name)

    return eventually(served)


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return first


def contains(live: Any, sent: Any) -> bool:
    """Return whether the live object contains everything that was sent."""
    if isinstance(sent, dict):
        return isinstance(live, dict) and all(
            key in live and contains(live[key], value) for key, value in sent.items()
        )
    if isinstance(sent, list):
        return len(live) == len(sent) and all(map(contains, live, sent))
    return bool(live == sent)


def without_managed_fields(live: dict[str, Any]) -> dict[str, Any]:
    spec = copy.deepcopy({key: live[key] for key in ("spec",)})
    metadata = live["metadata"]
    kept = {key: metadata.get(key) for key in ("labels", "annotations", "ownerReferences")}
    # The Deployment controller counts its rollouts here.
    (kept["annotations"] or {}).pop("deployment.kubernetes.io/revision", None)
    return {**spec, **kept}


def test_a_service_becomes_what_render_prints(
    api: Api, operator: OperatorProcess, served: str, name: str, tmp_path: Path
) -> None:
    service = make_service(name, served, replicas=2)
    api.create(LLMSERVICES, service)
    until_served(api, served, name)

    file = tmp_path / "service.yaml"
    file.write_text(yaml.safe_dump(service))
    printed = subprocess.run(
        [sys.executable, "-m", "llmservice_operator", "render", "-f", str(file)],
        env={
            "LLMSERVICE_OPERATOR_SERVER_IMAGE_CPU": CPU_IMAGE,
            "LLMSERVICE_OPERATOR_NAMESPACE": served,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    manifests = {kind_of(manifest): manifest for manifest in yaml.safe_load_all(printed.stdout)}
    assert {*EVERY_SERVICE_HAS} <= manifests.keys()
    # This API server serves none of the optional kinds.
    for kind in manifests.keys() & {*REQUIRED_KINDS}:
        live = api.get(kind, served, name)
        assert contains(live, manifests[kind])
        owner = live["metadata"]["ownerReferences"][0]
        assert owner["kind"] == "LLMService"
        assert owner["name"] == name
        assert owner["controller"] is True
    assert container(api.get(DEPLOYMENTS, served, name))["image"] == CPU_IMAGE


def test_nothing_but_the_status_is_written_to_the_users_object(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    created = api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    metadata = api.get(LLMSERVICES, served, name)["metadata"]
    assert "finalizers" not in metadata
    assert "annotations" not in metadata
    assert metadata["generation"] == created["metadata"]["generation"]
    ours = [e for e in metadata["managedFields"] if e["manager"] == "llmservice-operator"]
    assert [entry.get("subresource") for entry in ours] == ["status"]


def test_a_second_pass_writes_nothing(
    api: Api, own_operator: OperatorProcess, namespace: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, namespace))
    until_served(api, namespace, name)
    until_settled(own_operator)
    kinds = (LLMSERVICES, *EVERY_SERVICE_HAS)
    before = [api.get(kind, namespace, name)["metadata"]["resourceVersion"] for kind in kinds]
    passes = own_operator.metric("controller_runtime_reconcile_total")
    with writes_nothing(own_operator):
        # The operator ignores this label, but its event causes a pass.
        api.patch(LLMSERVICES, namespace, name, {"metadata": {"labels": {"team": "search"}}})
        eventually(lambda: own_operator.metric("controller_runtime_reconcile_total") > passes)
        until_settled(own_operator)
    after = [api.get(kind, namespace, name)["metadata"]["resourceVersion"] for kind in kinds]
    assert after[1:] == before[1:]


@pytest.mark.parametrize("kind", EVERY_SERVICE_HAS, ids=lambda kind: kind.plural)
def test_a_deleted_child_is_back_within_five_seconds(
    api: Api, operator: OperatorProcess, served: str, name: str, kind: Any
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    uid = api.get(kind, served, name)["metadata"]["uid"]
    api.delete(kind, served, name)

    def back() -> bool:
        return bool(api.get(kind, served, name)["metadata"]["uid"] != uid)

    eventually(back, RESTORE_SECONDS)


EDITS = [
    pytest.param(DEPLOYMENTS, {"spec": {"replicas": 7}}, id="replicas"),
    pytest.param(DEPLOYMENTS, {"metadata": {"ownerReferences": None}}, id="owner"),
    pytest.param(
        DEPLOYMENTS,
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}},
        id="the label by which it is watched",
    ),
    pytest.param(
        DEPLOYMENTS,
        {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}},
        id="pod template",
    ),
    pytest.param(
        SERVICES,
        {"spec": {"selector": {"llmservice.dev/name": "somebody-else"}}},
        id="selector of the Service object",
    ),
    pytest.param(POD_DISRUPTION_BUDGETS, {"spec": {"maxUnavailable": 0}}, id="disruption budget"),
    pytest.param(NETWORK_POLICIES, {"spec": {"ingress": [{}]}}, id="network policy"),
]


@pytest.mark.parametrize(("kind", "change"), EDITS)
def test_an_edited_field_is_restored_within_five_seconds(
    api: Api, operator: OperatorProcess, served: str, name: str, kind: Any, change: dict[str, Any]
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    before = without_managed_fields(api.get(kind, served, name))
    edited = api.patch(kind, served, name, change)
    assert without_managed_fields(edited) != before

    def restored() -> bool:
        return without_managed_fields(api.get(kind, served, name)) == before

    eventually(restored, RESTORE_SECONDS)


def test_a_child_is_deleted_while_the_spec_disables_it(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    policy = api.get(NETWORK_POLICIES, served, name)
    foreign = {**policy, "metadata": {"name": f"{name}-own", "namespace": served}}
    api.create(NETWORK_POLICIES, foreign)
    api.patch(LLMSERVICES, served, name, {"spec": {"networkPolicy": {"enabled": False}}})
    eventually(lambda: api.read(NETWORK_POLICIES, served, name) is None)
    until_settled(operator)
    api.get(NETWORK_POLICIES, served, f"{name}-own")
    api.patch(LLMSERVICES, served, name, {"spec": {"networkPolicy": {"enabled": True}}})
    eventually(lambda: api.read(NETWORK_POLICIES, served, name))
    assert api.get(NETWORK_POLICIES, served, name)["spec"] == policy["spec"]


def test_a_field_that_somebody_else_added_stays(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    note = {"metadata": {"annotations": {"example.com/note": "keep me"}}}
    api.patch(DEPLOYMENTS, served, name, note)
    until_settled(operator)
    live = api.get(DEPLOYMENTS, served, name)
    assert live["metadata"]["annotations"]["example.com/note"] == "keep me"


@pytest.mark.causes("NameConflict")
def test_a_foreign_object_of_the_same_name_is_reported_and_left_alone_until_it_is_deleted(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": served},
        "spec": {"ports": [{"port": 1234}]},
    }
    created = api.create(SERVICES, foreign)
    api.create(LLMSERVICES, make_service(name, served))

    def reported() -> dict[str, Any]:
        ready = condition(api.get(LLMSERVICES, served, name), "Ready")
        assert ready["reason"] == "NameConflict", ready
        return ready

    ready = eventually(reported)
    assert ready["status"] == "False"
    assert f"Service {name} belongs to somebody else" in ready["message"]
    assert ready["message"].endswith(Reason.NAME_CONFLICT.hint)
    until_settled(operator)
    assert (
        api.get(SERVICES, served, name)["metadata"]["resourceVersion"]
        == (created["metadata"]["resourceVersion"])
    )
    events = [e for e in api.list_all(EVENTS, served) if e["involvedObject"]["name"] == name]
    conflicts = [event for event in events if event["reason"] == "NameConflict"]
    assert [event["type"] for event in conflicts] == ["Warning"]

    api.delete(SERVICES, served, name)
    # The operator does not watch foreign objects. The user's next change causes the next pass.
    api.patch(LLMSERVICES, served, name, {"metadata": {"labels": {"again": "yes"}}})
    eventually(lambda: api.get(SERVICES, served, name)["spec"]["ports"][0]["port"] == 80)


def test_orphaned_children_are_adopted_by_a_new_service(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    before = until_served(api, served, name)
    api.delete(LLMSERVICES, served, name, propagationPolicy="Orphan")

    def orphaned() -> bool:
        owners = api.get(DEPLOYMENTS, served, name)["metadata"].get("ownerReferences")
        return not owners and api.read(LLMSERVICES, served, name) is None

    # The garbage collector learns of a new kind with its next discovery, every 30 s.
    eventually(orphaned)
    successor = api.create(LLMSERVICES, make_service(name, served))

    def adopted() -> bool:
        live = api.get(DEPLOYMENTS, served, name)
        owners = [owner["uid"] for owner in live["metadata"].get("ownerReferences", [])]
        assert live["metadata"]["uid"] == before["metadata"]["uid"]
        return owners == [successor["metadata"]["uid"]]

    eventually(adopted)


@pytest.mark.causes("ImmutableField")
def test_a_field_that_cannot_change_is_reported_with_the_remedy(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    orphan = until_served(api, served, name)
    api.delete(LLMSERVICES, served, name, propagationPolicy="Orphan")
    eventually(lambda: api.read(LLMSERVICES, served, name) is None)
    eventually(lambda: not api.get(DEPLOYMENTS, served, name)["metadata"].get("ownerReferences"))
    api.delete(DEPLOYMENTS, served, name)
    eventually(lambda: api.read(DEPLOYMENTS, served, name) is None)
    spec = copy.deepcopy(orphan["spec"])
    for labels in (spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"]):
        labels["left"] = "over"
    kept = {"name": name, "namespace": served, "labels": orphan["metadata"]["labels"]}
    api.create(
        DEPLOYMENTS,
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": kept, "spec": spec},
    )
    api.create(LLMSERVICES, make_service(name, served))

    def reported() -> dict[str, Any]:
        ready = condition(api.get(LLMSERVICES, served, name), "Ready")
        assert ready["reason"] == "ImmutableField", ready
        return ready

    assert eventually(reported)["message"].endswith(Reason.IMMUTABLE_FIELD.hint)
    api.delete(DEPLOYMENTS, served, name)
    until_served(api, served, name)
    eventually(
        lambda: condition(api.get(LLMSERVICES, served, name), "Ready")["reason"] != "ImmutableField"
    )


def test_deleting_a_service_removes_its_children_and_nothing_comes_back(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    selector = f"llmservice.dev/name={name}"
    eventually(lambda: api.list_all(PODS, served, labelSelector=selector))
    api.delete(LLMSERVICES, served, name)

    def all_gone() -> bool:
        return not any(api.read(kind, served, name) for kind in (LLMSERVICES, *EVERY_SERVICE_HAS))

    eventually(all_gone)
    eventually(lambda: not api.list_all(PODS, served, labelSelector=selector))
    # A pass that was writing while the service was deleted may make a child, which the garbage
    # collector deletes.
    until_settled(operator)
    eventually(all_gone)
    holds_for(2, all_gone)
    assert f'llmservice="{name}"' not in operator.get("/metrics")[1]


def test_a_service_deleted_in_the_foreground_gets_no_new_children_while_it_waits(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    api.patch(LLMSERVICES, served, name, {"metadata": {"finalizers": ["example.com/slow"]}})
    api.delete(LLMSERVICES, served, name, propagationPolicy="Foreground")

    def children_gone() -> bool:
        return not any(api.read(kind, served, name) for kind in EVERY_SERVICE_HAS)

    try:
        # The garbage collector looks for new kinds every 30 s only.
        eventually(children_gone)
        holds_for(2, children_gone)
    finally:
        # A leftover service would block the deletion of the CRD in the tests that install it.
        api.patch(LLMSERVICES, served, name, {"metadata": {"finalizers": None}})
    eventually(lambda: api.read(LLMSERVICES, served, name) is None)


def test_a_service_created_again_under_its_name_gets_children_of_its_own(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, make_service(name, served))
    before = until_served(api, served, name)
    api.delete(LLMSERVICES, served, name)
    successor = api.create(LLMSERVICES, make_service(name, served))

    def served_anew() -> bool:
        live = api.get(DEPLOYMENTS, served, name)
        owner = live["metadata"]["ownerReferences"][0]["uid"]
        assert owner == successor["metadata"]["uid"]
        return bool(live["metadata"]["uid"] != before["metadata"]["uid"])

    eventually(served_anew)
    until_served(api, served, name)
    assert condition(api.get(LLMSERVICES, served, name), "Ready")["reason"] != "NameConflict"


def test_going_to_another_spec_and_back_gives_exactly_the_first_objects(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    image = "registry.example/own:1"
    first = make_service(name, served, engine={"image": image})
    other = make_service(
        name,
        served,
        model={"uri": "pvc://models/llama", "name": "llama"},
        replicas=3,
        service={"type": "NodePort", "port": 8080, "annotations": {"a.b/c": "d"}},
        podDisruptionBudget={"minAvailable": "50%"},
        networkPolicy={"from": [{"namespaceSelector": {}}]},
        termination={"preStopSeconds": 1},
        engine={
            "image": image,
            "version": "0.30.0",
            "maxModelLen": 512,
            "batching": {"maxNumSeqs": 4},
        },
        resources={"requests": {"cpu": "2", "memory": "2Gi"}},
        template={"nodeSelector": {"disk": "fast"}, "tolerations": [{"operator": "Exists"}]},
    )
    api.create(LLMSERVICES, first)
    until_served(api, served, name)
    kinds = EVERY_SERVICE_HAS
    before = [without_managed_fields(api.get(kind, served, name)) for kind in kinds]

    for wanted in (other, first):
        replace = [{"op": "replace", "path": "/spec", "value": wanted["spec"]}]
        path = LLMSERVICES.path(served, name)
        api.request("PATCH", path, replace, "application/json-patch+json")
        until_served(api, served, name)
        if wanted is other:
            changed = api.get(DEPLOYMENTS, served, name)["spec"]
            assert changed["replicas"] == 3
            assert changed["template"]["spec"]["nodeSelector"] == {"disk": "fast"}
    after = [without_managed_fields(api.get(kind, served, name)) for kind in kinds]
    assert after == before


def test_a_broken_service_does_not_hold_up_the_others(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    broken = make_service(f"{name}-x", served, engine={"extraArgs": ["--no-such-flag=1"]})
    api.create(LLMSERVICES, broken)

    def refused() -> dict[str, Any]:
        ready = condition(api.get(LLMSERVICES, served, f"{name}-x"), "Ready")
        assert ready["reason"] == "InvalidSpec", ready
        return ready

    assert "no-such-flag" in eventually(refused)["message"]
    started = time.monotonic()
    api.create(LLMSERVICES, make_service(name, served))
    until_served(api, served, name)
    assert time.monotonic() - started < 5
