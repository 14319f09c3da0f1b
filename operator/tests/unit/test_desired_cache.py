"""Tests the claim of spec.model.cache, and the pods that use it."""

from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired import may_change
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service

MADE = {"type": "PersistentVolumeClaim", "size": "200Gi"}
NAMED = {"type": "PersistentVolumeClaim", "claimName": "models"}


def objects(cache: dict[str, Any] | None, **model: Any) -> list[Manifest]:
    fields = {"uri": "hf://org/model", **model, **({} if cache is None else {"cache": cache})}
    service = a_service({"model": fields})
    return build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))


def claims(cache: dict[str, Any] | None) -> list[Manifest]:
    return [each for each in objects(cache) if each["kind"] == "PersistentVolumeClaim"]


def pod(cache: dict[str, Any] | None, **model: Any) -> dict[str, Any]:
    (deployment,) = (each for each in objects(cache, **model) if each["kind"] == "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return found


def server(cache: dict[str, Any] | None, **model: Any) -> dict[str, Any]:
    (container,) = pod(cache, **model)["containers"]
    found: dict[str, Any] = container
    return found


def variables(cache: dict[str, Any] | None, **model: Any) -> dict[str, str]:
    env = server(cache, **model)["env"]
    return {each["name"]: each["value"] for each in env if "value" in each}


def test_the_operator_makes_a_claim_that_outlives_the_service_by_default() -> None:
    (claim,) = claims(MADE)
    assert claim["metadata"]["name"] == "qwen-cache"
    assert claim["metadata"]["labels"]["llmservice.dev/name"] == "qwen"
    assert "ownerReferences" not in claim["metadata"]
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "200Gi"}},
    }
    (deleted,) = claims({**MADE, "retentionPolicy": "Delete"})
    assert deleted["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    (retained,) = claims({**MADE, "retentionPolicy": "Retain"})
    assert "ownerReferences" not in retained["metadata"]


def test_a_claim_without_an_owner_has_no_label_by_which_another_tool_would_own_it() -> None:
    (retained,), (deleted,) = claims(MADE), claims({**MADE, "retentionPolicy": "Delete"})
    assert names.INSTANCE_LABEL not in retained["metadata"]["labels"]
    assert deleted["metadata"]["labels"][names.INSTANCE_LABEL] == "qwen"


def test_a_retained_claim_gets_an_owner_when_the_spec_no_longer_retains_it() -> None:
    (retained,) = claims(MADE)
    assert may_change(retained, a_service())


def test_class_and_access_modes_are_those_of_the_spec() -> None:
    (claim,) = claims({**MADE, "storageClassName": "fast", "accessModes": ["ReadWriteOnce"]})
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


@pytest.mark.parametrize("cache", [None, {"type": "Ephemeral"}, NAMED])
def test_no_claim_is_made_that_the_spec_does_not_request(cache: dict[str, Any] | None) -> None:
    assert claims(cache) == []


@pytest.mark.parametrize(("cache", "claim"), [(MADE, "qwen-cache"), (NAMED, "models")])
def test_the_pods_write_to_the_claim_and_share_it(cache: dict[str, Any], claim: str) -> None:
    volume = {"name": "model-cache", "persistentVolumeClaim": {"claimName": claim}}
    assert volume in pod(cache)["volumes"]
    assert {"name": "model-cache", "mountPath": "/model-cache"} in server(cache)["volumeMounts"]
    told = variables(cache)
    assert told["HF_HUB_CACHE"] == "/model-cache/hub"
    assert told["LLMSERVICE_SHARED_CACHE_DIRECTORY"] == "/model-cache"
    # Python modules of a model are code, so they stay in the pod.
    assert told["HF_HOME"] == "/cache/huggingface"


def test_kernels_are_kept_on_the_services_own_claim_and_on_another_only_if_enabled() -> None:
    own = variables(MADE)
    for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        assert own[name].startswith("/model-cache/compile/qwen/")
        assert variables(NAMED)[name].startswith("/cache/")
        assert variables({**NAMED, "compileCache": True})[name] == own[name]
        assert variables({**MADE, "compileCache": False})[name].startswith("/cache/")


@pytest.mark.parametrize("cache", [None, {"type": "Ephemeral"}])
def test_an_ephemeral_cache_changes_no_pod(cache: dict[str, Any] | None) -> None:
    assert objects(cache) == objects(None)
    assert "LLMSERVICE_SHARED_CACHE_DIRECTORY" not in variables(cache)


def test_the_size_of_an_ephemeral_cache_is_requested_from_the_node_and_limits_it() -> None:
    sized = {"type": "Ephemeral", "size": "200Gi"}
    assert {"name": "cache", "emptyDir": {"sizeLimit": "200Gi"}} in pod(sized)["volumes"]
    assert server(sized)["resources"]["requests"]["ephemeral-storage"] == "200Gi"
    assert claims(sized) == []
    assert variables(sized) == variables(None)


@pytest.mark.parametrize("cache", [None, MADE, NAMED])
def test_node_storage_is_requested_only_if_the_spec_gives_a_size(
    cache: dict[str, Any] | None,
) -> None:
    assert {"name": "cache", "emptyDir": {"sizeLimit": "1Ti"}} in pod(cache)["volumes"]
    assert "ephemeral-storage" not in server(cache)["resources"]["requests"]


@pytest.mark.parametrize(
    ("resources", "asked"),
    [
        ({"requests": {"ephemeral-storage": "300Gi"}}, {"ephemeral-storage": "300Gi"}),
        ({"limits": {"ephemeral-storage": "300Gi"}}, {}),
    ],
    ids=["a request", "a limit, which is a request too"],
)
def test_resources_of_the_spec_override_the_size_of_an_ephemeral_cache(
    resources: dict[str, Any], asked: dict[str, str]
) -> None:
    model = {"uri": "hf://org/model", "cache": {"type": "Ephemeral", "size": "200Gi"}}
    service = a_service({"model": model, "resources": resources})
    found = build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))
    (deployment,) = (each for each in found if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    requests = container["resources"]["requests"]
    assert {name: requests[name] for name in requests if name == "ephemeral-storage"} == asked


def test_offline_is_set_for_every_library() -> None:
    offline = variables(NAMED, offline=True)
    assert (offline["HF_HUB_OFFLINE"], offline["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & variables(NAMED).keys()
