"""Tests that the claim of a model cache is made, kept and adopted, but never forced to change."""

from typing import Any

from llmservice_operator.api.reasons import Reason
from llmservice_operator.kinds import CLAIMS, DEPLOYMENTS, LLMSERVICES
from operator_support.processes import Api, OperatorProcess, condition, make_service, until_settled
from shared_support.waiting import eventually


def with_cache(name: str, namespace: str, **cache: Any) -> dict[str, Any]:
    model = {
        "uri": "hf://org/model",
        "cache": {"type": "PersistentVolumeClaim", "size": "10Gi", **cache},
    }
    return make_service(name, namespace, model=model)


def change_cache(api: Api, namespace: str, name: str, **cache: Any) -> None:
    api.patch(LLMSERVICES, namespace, name, {"spec": {"model": {"cache": cache}}})


def owners(claim: dict[str, Any]) -> list[str]:
    return [owner["kind"] for owner in claim["metadata"].get("ownerReferences", [])]


def test_a_claim_outlives_its_service_and_is_taken_by_the_next_one(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, with_cache(name, served))
    made = eventually(lambda: api.get(CLAIMS, served, f"{name}-cache"))
    assert owners(made) == []
    api.delete(LLMSERVICES, served, name)
    eventually(lambda: api.read(DEPLOYMENTS, served, name) is None)
    kept = api.get(CLAIMS, served, f"{name}-cache")
    assert "deletionTimestamp" not in kept["metadata"]

    api.create(LLMSERVICES, with_cache(name, served, retentionPolicy="Delete"))

    def adopted() -> bool:
        claim = api.get(CLAIMS, served, f"{name}-cache")
        assert claim["metadata"]["uid"] == made["metadata"]["uid"]
        return owners(claim) == ["LLMService"]

    eventually(adopted)
    change_cache(api, served, name, retentionPolicy="Retain")
    eventually(lambda: owners(api.get(CLAIMS, served, f"{name}-cache")) == [])
    until_settled(operator)


def test_a_change_that_a_claim_cannot_follow_is_reported_and_delays_nothing_else(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    api.create(LLMSERVICES, with_cache(name, served, storageClassName="one"))
    claim = eventually(lambda: api.get(CLAIMS, served, f"{name}-cache"))

    def reported() -> dict[str, Any]:
        ready = condition(api.get(LLMSERVICES, served, name), "Ready")
        assert ready["reason"] == "ImmutableField", ready
        return ready

    for change, back in (
        ({"storageClassName": "two"}, {"storageClassName": "one"}),
        ({"accessModes": ["ReadWriteOnce"]}, {"accessModes": None}),
    ):
        change_cache(api, served, name, **change)
        message = eventually(reported)["message"]
        assert message.endswith(Reason.IMMUTABLE_FIELD.hint)
        api.patch(LLMSERVICES, served, name, {"spec": {"engine": {"maxModelLen": len(change)}}})
        eventually(lambda: len(args(api, served, name)) == 3)
        change_cache(api, served, name, **back)
        api.patch(LLMSERVICES, served, name, {"spec": {"engine": {"maxModelLen": None}}})
        eventually(lambda: len(args(api, served, name)) == 2)

        def mended() -> bool:
            ready = condition(api.get(LLMSERVICES, served, name), "Ready")
            return bool(ready["reason"] != "ImmutableField")

        eventually(mended)
    live = api.get(CLAIMS, served, f"{name}-cache")
    assert live["metadata"]["uid"] == claim["metadata"]["uid"]
    assert live["spec"] == claim["spec"]


def test_a_size_that_the_storage_cannot_provide_is_reported_and_the_claim_is_left_alone(
    api: Api, operator: OperatorProcess, served: str, name: str
) -> None:
    volume = {
        "metadata": {"name": name},
        "spec": {
            "storageClassName": name,
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": "/nowhere"},
        },
    }
    api.request("POST", "/api/v1/persistentvolumes", volume)
    api.create(LLMSERVICES, with_cache(name, served, storageClassName=name))
    eventually(lambda: claim_phase(api, served, name) == "Bound")
    for size in ("20Gi", "5Gi"):
        change_cache(api, served, name, size=size)

        def reported(size: str = size) -> bool:
            service = api.get(LLMSERVICES, served, name)
            ready = condition(service, "Ready")
            assert ready["observedGeneration"] == service["metadata"]["generation"]
            assert ready["reason"] == "ImmutableField", (size, ready)
            return True

        eventually(reported)
    claim = api.get(CLAIMS, served, f"{name}-cache")
    assert claim["spec"]["resources"]["requests"]["storage"] == "10Gi"
    api.request("DELETE", f"/api/v1/persistentvolumes/{name}")


def claim_phase(api: Api, namespace: str, name: str) -> str:
    claim = api.read(CLAIMS, namespace, f"{name}-cache") or {}
    return str(claim.get("status", {}).get("phase"))


def args(api: Api, namespace: str, name: str) -> list[str]:
    pod = api.get(DEPLOYMENTS, namespace, name)["spec"]["template"]["spec"]
    found: list[str] = pod["containers"][0]["args"]
    return found
