"""Tests that the cache keeps only the fields that are read, and shares equal parts."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.cluster import Cache
from llmservice_operator.cluster.compact import SHARED_PARTS, SHARED_WHOLES, Compactor
from llmservice_operator.desired import is_up_to_date
from llmservice_operator.kinds import PODS
from llmservice_operator.workload import observe_service
from operator_support.examples import GOLDEN, golden_objects, objects_in
from operator_support.pods import (
    FULL_CACHE,
    a_failed_pod,
    an_old_pod,
    an_unstarted_pod,
    beside,
)
from operator_support.services import NOW, a_deployment, a_service, as_live

KIB = 2**10


def children(number: int, text: str) -> list[dict[str, Any]]:
    """Return the live children of one of many services that differ only in their names."""
    found: list[dict[str, Any]] = json.loads(text.replace("autoscaled", f"autoscaled-{number}"))
    for each in found:
        each["metadata"].update(uid=f"uid-{number}", namespace="team")
    return found


@pytest.mark.parametrize("golden", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_a_compact_object_is_equal_to_the_object(golden: Path) -> None:
    compactor = Compactor()
    for _ in range(2):
        for manifest in objects_in(golden.read_text()):
            live = as_live(manifest)
            before = copy.deepcopy(live)
            assert compactor.compact(live) == before
            assert live == before
            assert is_up_to_date(compactor.compact(live), manifest)


@pytest.mark.parametrize(
    ("one", "other"), [(True, 1), (1, 1.0), ("1", 1), ([], {}), ({"a": [1]}, {"a": [True]})]
)
def test_parts_that_are_not_the_same_to_the_api_are_not_shared(one: Any, other: Any) -> None:
    compactor = Compactor()

    def compacted(value: Any) -> str:
        live = {"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": {"x": {"y": value}}}
        return json.dumps(compactor.compact(live)["spec"])

    for value in (one, other, one):
        assert compacted(value) == json.dumps({"x": {"y": value}})


def test_the_memory_of_the_compactor_is_bounded() -> None:
    compactor = Compactor()
    for number in range(SHARED_PARTS):
        spec = {"x": {"y": [number, {"z": number}]}}
        compactor.compact({"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": spec})
    assert len(compactor._parts) == SHARED_PARTS
    assert len(compactor._wholes) == SHARED_WHOLES


def bytes_of(value: Any, counted: set[int]) -> int:
    """Return the memory of a value in bytes, or 0 for a value that was counted before."""
    if id(value) in counted:
        return 0
    counted.add(id(value))
    inside = (*value, *value.values()) if isinstance(value, dict) else value
    parts = inside if isinstance(value, dict | list) else ()
    return sys.getsizeof(value) + sum(bytes_of(each, counted) for each in parts)


def test_the_objects_of_a_service_take_at_most_thirteen_kibibytes() -> None:
    manifests = golden_objects("autoscaled")
    text = json.dumps(list(map(as_live, manifests)))
    cache, counted, services = Cache(), set[int](), 100
    for number in range(services):
        for live in children(number, text):
            cache.observe(live)
    used = sum(bytes_of(each, counted) for kind in cache.kinds() for each in cache.of_kind(kind))
    assert used < services * 13 * KIB


def as_stored(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod with further fields of a real pod, which the operator does not read."""
    stored = copy.deepcopy(pod)
    stored.update(apiVersion="v1", kind="Pod")
    stored["metadata"].update(
        namespace="team",
        uid="uid-7",
        resourceVersion="7",
        annotations={names.DELETION_COST_ANNOTATION: "5", "cni": "x" * 5000},
    )
    stored["spec"]["containers"][0].update(args=["--x"] * 200, env=[{"name": "A"}] * 50)
    stored["spec"]["tolerations"] = [{"key": "x"}] * 20
    stored["status"].update(hostIP="10.0.0.1", podIP="10.1.0.1", qosClass="Burstable")
    return stored


PODS_OF_ALL_KINDS = {
    "failed": a_failed_pod("Evicted", FULL_CACHE),
    "serving": an_old_pod(),
    "unstarted": an_unstarted_pod(400, acknowledged=False),
    "on a lost node": beside(),
}


@pytest.mark.parametrize("pod", PODS_OF_ALL_KINDS.values(), ids=PODS_OF_ALL_KINDS.keys())
def test_a_compact_pod_gives_the_same_observation_as_the_pod(pod: dict[str, Any]) -> None:
    stored, cache = as_stored(pod), Cache()
    assert cache.observe(stored)
    (kept,) = cache.of_kind(PODS)
    for live in (a_deployment(), a_deployment(replicas=2, updated=1)):
        whole, compact = (
            observe_service(a_service(), live, [each], None, NOW) for each in (stored, kept)
        )
        assert compact == whole
    assert kept["metadata"]["annotations"] == {names.DELETION_COST_ANNOTATION: "5"}
    assert kept["status"]["podIP"] == "10.1.0.1"
    assert len(json.dumps(kept)) < 2000 < len(json.dumps(stored))


def test_equal_containers_of_pods_are_kept_once() -> None:
    cache = Cache()
    for number in range(2):
        stored = as_stored(an_old_pod())
        stored["metadata"].update(name=f"pod-{number}", uid=f"uid-{number}")
        cache.observe(stored)
    one, other = (each["spec"]["containers"] for each in cache.of_kind(PODS))
    assert one is other
