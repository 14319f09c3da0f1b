from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.cluster import Cache, owner_key
from llmservice_operator.cluster.cache import REMEMBERED_DELETIONS
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS, Kind

KEY = ("team", "llama")


def make_object(kind: Kind, name: str, version: int, uid: str = "1", **metadata: Any) -> Any:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
    }


def controlled_by(api_version: str, kind: str, name: str) -> dict[str, Any]:
    reference = {"apiVersion": api_version, "kind": kind, "name": name, "controller": True}
    return {"ownerReferences": [reference]}


OURS = controlled_by("llmservice.dev/v1alpha1", "LLMService", "llama")
LABELLED: dict[str, Any] = {"labels": {names.SERVICE_LABEL: "llama"}}


def test_only_a_newer_version_is_a_change() -> None:
    cache = Cache()
    assert cache.observe(make_object(LLMSERVICES, "llama", 5))
    assert not cache.observe(make_object(LLMSERVICES, "llama", 5))
    assert not cache.observe(make_object(LLMSERVICES, "llama", 4))
    assert cache.observe(make_object(LLMSERVICES, "llama", 10))
    live = cache.service(KEY)
    assert live is not None
    assert live["metadata"]["resourceVersion"] == "10"


def test_the_changes_of_each_kind_are_counted() -> None:
    cache = Cache()
    cache.observe(make_object(LLMSERVICES, "llama", 5))
    cache.observe(make_object(PODS, "a", 5))
    first = cache.changes(PODS)
    cache.observe(make_object(PODS, "a", 5))
    cache.observe(make_object(LLMSERVICES, "llama", 6))
    assert cache.changes(PODS) == first
    cache.observe(make_object(PODS, "a", 6))
    second = cache.changes(PODS)
    cache.drop(make_object(PODS, "a", 7))
    assert first < second < cache.changes(PODS)


def test_a_version_that_is_held_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    cache.observe(make_object(PODS, "a", 5))
    monkeypatch.setattr("llmservice_operator.cluster.cache.understood", pytest.fail)
    assert cache.take(make_object(PODS, "a", 5)) is None


def test_a_listed_object_takes_no_more_memory_than_a_cached_one() -> None:
    cache = Cache()
    cache.observe(make_object(PODS, "a", 5))
    assert cache.reduced(make_object(PODS, "a", 5)) is cache.get(PODS, "team", "a")
    newer = {**make_object(PODS, "a", 6), "spec": {"nodeName": "n", "tolerations": [{}]}}
    assert cache.reduced(newer)["spec"] == {"nodeName": "n"}
    unreadable = {**newer, "status": {"phase": 1}}
    assert cache.reduced(unreadable) is unreadable


def test_a_late_deletion_does_not_drop_the_successor_of_the_same_name() -> None:
    cache = Cache()
    old = make_object(LLMSERVICES, "llama", 5, uid="old")
    cache.observe(old)
    cache.observe(make_object(LLMSERVICES, "llama", 9, uid="new"))
    assert not cache.drop(old)
    assert cache.service(KEY) is not None


def test_a_dropped_object_is_gone_and_can_be_seen_again() -> None:
    cache = Cache()
    live = make_object(DEPLOYMENTS, "llama", 5, **OURS)
    cache.observe(live)
    assert cache.drop(make_object(DEPLOYMENTS, "llama", 6, **OURS))
    assert not cache.drop(live)
    assert cache.get(DEPLOYMENTS, *KEY) is None
    assert cache.owned(KEY, DEPLOYMENTS) == []
    assert cache.observe(make_object(DEPLOYMENTS, "llama", 7, **OURS))


def test_an_answer_that_comes_after_the_deletion_does_not_bring_the_object_back() -> None:
    cache = Cache()
    cache.drop(make_object(DEPLOYMENTS, "llama", 6, **OURS))
    assert not cache.observe(make_object(DEPLOYMENTS, "llama", 5, **OURS))
    assert cache.get(DEPLOYMENTS, *KEY) is None
    for number in range(2000):
        cache.drop(make_object(PODS, f"pod-{number}", 10 + number))
    assert len(cache._dropped) == REMEMBERED_DELETIONS


def test_the_cache_finds_the_objects_of_a_service_by_kind_sorted_by_name() -> None:
    cache = Cache()
    for number in (2, 0, 1):
        cache.observe(make_object(PODS, f"llama-{number}", number + 1, **LABELLED))
    cache.observe(make_object(DEPLOYMENTS, "llama", 7, **OURS))
    cache.observe(make_object(PODS, "stranger", 8))
    pods = [pod["metadata"]["name"] for pod in cache.owned(KEY, PODS)]
    assert pods == ["llama-0", "llama-1", "llama-2"]
    assert cache.count(PODS) == 4


def test_the_cache_follows_an_object_to_another_owner() -> None:
    cache = Cache()
    cache.observe(make_object(PODS, "pod", 1, **LABELLED))
    cache.observe(make_object(PODS, "pod", 2, labels={names.SERVICE_LABEL: "qwen"}))
    assert cache.owned(KEY, PODS) == []
    assert len(cache.owned(("team", "qwen"), PODS)) == 1


def test_the_cache_keeps_only_the_operators_own_field_ownership() -> None:
    cache = Cache()
    entries = [{"manager": "kubectl"}, {"manager": names.FIELD_MANAGER}]
    live = make_object(DEPLOYMENTS, "llama", 1, managedFields=entries)
    cache.observe(live)
    kept = cache.get(DEPLOYMENTS, *KEY)
    assert kept is not None
    assert kept["metadata"]["managedFields"] == [{"manager": names.FIELD_MANAGER}]
    assert len(live["metadata"]["managedFields"]) == 2


@pytest.mark.parametrize(
    ("manifest", "owner"),
    [
        pytest.param(make_object(LLMSERVICES, "llama", 1), KEY, id="a service is its own"),
        pytest.param(make_object(DEPLOYMENTS, "d", 1, **OURS), KEY, id="by its controller"),
        pytest.param(
            make_object(PODS, "p", 1, **LABELLED, **controlled_by("apps/v1", "ReplicaSet", "r")),
            KEY,
            id="a pod by its label",
        ),
        pytest.param(
            make_object(DEPLOYMENTS, "d", 1, **LABELLED), KEY, id="an orphan by its label"
        ),
        pytest.param(make_object(DEPLOYMENTS, "d", 1), None, id="a stranger is nobody's"),
        pytest.param(
            make_object(
                DEPLOYMENTS, "d", 1, **controlled_by("other.dev/v1", "LLMService", "llama")
            ),
            None,
            id="a kind of the same name in another group is not ours",
        ),
    ],
)
def test_the_service_that_an_object_belongs_to_is_found(manifest: Any, owner: Any) -> None:
    assert owner_key(manifest) == owner
