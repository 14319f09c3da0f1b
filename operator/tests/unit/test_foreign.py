"""Tests that no content of a stored object breaks a load, an event, an audit or a pass."""

import copy
import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator import names
from llmservice_operator.api.reasons import Reason
from llmservice_operator.cluster import Cache, understood
from llmservice_operator.cluster.cache import REMEMBERED_UNREADABLE
from llmservice_operator.errors import Unreadable
from llmservice_operator.kinds import (
    AUTOSCALERS,
    DEPLOYMENTS,
    LLMSERVICES,
    PODS,
    SCALED_OBJECTS,
    SERVICES,
    Kind,
)
from llmservice_operator.telemetry import Metrics
from operator_support.reconcile import KEY, OneService
from operator_support.services import a_pod

LABELS = {names.SERVICE_LABEL: "llama"}


def an_object(kind: Kind, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": "llama",
            "namespace": "team",
            "uid": "1",
            "resourceVersion": "5",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": LABELS,
            **metadata,
        },
    }


def test_field_ownership_without_a_manager_hides_nothing_of_the_object() -> None:
    entries = [{"operation": "Update"}, None, "text", {"manager": None}]
    cache = Cache()
    assert cache.observe(an_object(SERVICES, managedFields=entries))
    assert cache.get(SERVICES, *KEY) is not None


def test_field_ownership_in_our_name_that_is_nested_too_deep_makes_an_object_unreadable() -> None:
    fields: Any = {}
    for _ in range(20_000):
        fields = {"f:a": fields}
    entry = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields}
    cache = Cache()
    cache.observe(an_object(SERVICES))
    cache.take(an_object(SERVICES, resourceVersion="6", managedFields=[entry]))
    assert cache.get(SERVICES, *KEY) is None
    assert cache.owned(KEY, SERVICES) == []
    assert cache.count_unreadable(SERVICES) == 1


@pytest.mark.parametrize("entries", [None, {}, "text", 5])
def test_field_ownership_that_is_no_list_is_left_out(entries: Any) -> None:
    found = understood(an_object(SERVICES, managedFields=entries))
    assert "managedFields" not in found["metadata"]


def test_a_null_is_an_absent_field() -> None:
    metadata = {"labels": None, "annotations": None, "ownerReferences": None, "finalizers": None}
    live = {**an_object(PODS, **metadata), "spec": None, "status": {"conditions": None}}
    cache = Cache()
    assert cache.observe(live)
    kept = cache.get(PODS, *KEY)
    assert kept is not None
    assert not kept["metadata"].keys() & metadata.keys()
    assert kept["status"] == {}
    assert "spec" not in kept


UNREADABLE: list[Any] = [
    None,
    "text",
    [],
    {},
    {"metadata": None},
    {"metadata": {"name": "llama", "namespace": "team"}},
    {**an_object(SERVICES), "kind": "Unheard"},
    {**an_object(SERVICES), "kind": ["Service"]},
    *(
        an_object(kind, **metadata)
        for kind in (SERVICES, PODS, DEPLOYMENTS, LLMSERVICES)
        for metadata in list[dict[str, Any]](
            (
                {"name": None},
                {"name": 5},
                {"namespace": ""},
                {"uid": None},
                {"resourceVersion": None},
                {"resourceVersion": "opaque"},
                {"resourceVersion": 7},
                {"labels": ["a"]},
                {"labels": {"a": 1}},
                {"annotations": "text"},
                {"ownerReferences": {}},
                {"ownerReferences": ["text"]},
                {"ownerReferences": [{"name": "llama"}]},
                {"ownerReferences": [{"apiVersion": 1, "kind": "A", "name": "b", "uid": "c"}]},
                {"creationTimestamp": "0000-01-01T00:00:00Z"},
                {"creationTimestamp": "yesterday"},
                {"creationTimestamp": "2026-01-01T00:00:00"},
                {"generation": "3"},
            )
        )
    ),
    *(
        {**an_object(PODS), **part}
        for part in list[dict[str, Any]](
            (
                {"spec": []},
                {"spec": {"containers": {"name": "server"}}},
                {"spec": {"containers": [{"image": "a"}]}},
                {"spec": {"volumes": [{"persistentVolumeClaim": {}}]}},
                {"metadata": {**an_object(PODS)["metadata"], "creationTimestamp": None}},
                {"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 0.5}}}]}},
                {"status": "Running"},
                {"status": {"startTime": "soon"}},
                {"status": {"phase": 1}},
                {"status": {"conditions": [{"status": "True"}]}},
                {"status": {"conditions": [{"type": "Ready", "lastTransitionTime": "now"}]}},
                {"status": {"containerStatuses": [{"image": "a"}]}},
                {"status": {"containerStatuses": [{"name": "server", "restartCount": "2"}]}},
                {
                    "status": {
                        "containerStatuses": [
                            {"name": "server", "state": {"running": {"startedAt": "0000-01-01"}}}
                        ]
                    }
                },
            )
        )
    ),
    *(
        {**an_object(DEPLOYMENTS), **part}
        for part in list[dict[str, Any]](
            (
                {"spec": {"replicas": "3"}},
                {"spec": {"template": {"spec": {"containers": [{}]}}}},
                {"status": {"readyReplicas": True}},
                {"status": {"conditions": ["Available"]}},
            )
        )
    ),
    {**an_object(AUTOSCALERS), "spec": {"behavior": {"scaleDown": "fast"}}},
    {**an_object(AUTOSCALERS), "status": {"desiredReplicas": "3"}},
    {**an_object(SCALED_OBJECTS), "spec": {"advanced": {"horizontalPodAutoscalerConfig": []}}},
]


@pytest.mark.parametrize("live", UNREADABLE, ids=lambda each: json.dumps(each)[-90:])
def test_a_malformed_object_is_skipped_counted_and_logged_once(
    live: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache()
    with pytest.raises(Unreadable):
        understood(live)
    for _ in range(3):
        assert not cache.observe(live)
        cache.replace(cache.snapshot(SERVICES, None), [live])
    assert sum(map(cache.count, cache.kinds())) == 0
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "makes no sense" in caplog.text


def test_an_object_is_forgotten_when_it_becomes_malformed() -> None:
    cache = Cache()
    cache.observe(an_object(PODS))
    bad = {**an_object(PODS, resourceVersion="6"), "status": {"phase": 1}}
    assert cache.take(bad) == frozenset({KEY})
    assert cache.owned(KEY, PODS) == []
    assert cache.count_unreadable(PODS) == 1
    good = an_object(PODS, resourceVersion="7")
    assert cache.take(good) == frozenset({KEY})
    assert cache.count_unreadable(PODS) == 0


def test_an_unreadable_object_that_is_gone_is_not_counted_any_more() -> None:
    cache = Cache()
    bad = an_object(SERVICES, labels={"a": 1})
    for forget in (
        lambda: cache.drop(bad),
        lambda: cache.replace(cache.snapshot(SERVICES, None), []),
        lambda: cache.replace(cache.snapshot(SERVICES, "team"), []),
    ):
        cache.observe(bad)
        assert cache.count_unreadable(SERVICES) == 1
        cache.replace(cache.snapshot(SERVICES, "other"), [])
        cache.replace(cache.snapshot(PODS, None), [])
        assert cache.count_unreadable(SERVICES) == 1
        forget()
        assert cache.count_unreadable(SERVICES) == 0


def test_a_flood_of_unreadable_objects_takes_a_bounded_memory() -> None:
    cache = Cache()
    for number in range(2 * REMEMBERED_UNREADABLE):
        cache.observe(an_object(PODS, name=f"pod-{number}", uid=None))
    assert cache.count_unreadable(PODS) == REMEMBERED_UNREADABLE


async def test_unreadable_objects_are_a_metric_of_their_kind() -> None:
    metrics, cache = Metrics(), Cache()
    metrics.read_cache("pods", lambda: cache.count(PODS), lambda: cache.count_unreadable(PODS))
    cache.observe(an_object(PODS, uid=None))
    text = (await metrics.render()).decode()
    assert 'llmservice_unreadable_objects{kind="pods"} 1.0' in text
    assert 'llmservice_cache_objects{kind="pods"} 0.0' in text


async def test_a_malformed_pod_breaks_no_pass() -> None:
    world = OneService()
    await world.settle()
    world.is_rolled_out()
    pod = {**a_pod({"running": {}}), "apiVersion": "v1", "kind": "Pod"}
    metadata = {**pod["metadata"], "namespace": "team", "uid": "p", "labels": LABELS}
    condition = {"type": "Ready", "status": "False", "lastTransitionTime": "0000-01-01T00:00:00Z"}
    status = {**pod["status"], "conditions": [condition]}
    world.see({**pod, "metadata": metadata, "status": status})
    await world.settle()
    assert world.condition("Ready")["reason"] == "Serving"


@pytest.mark.causes(Reason.UNREADABLE_OBJECT)
async def test_a_malformed_child_is_named_and_the_others_are_made() -> None:
    world = OneService()
    bad = an_object(SERVICES, labels={"a": 1})
    world.cluster.objects[SERVICES, "llama"] = bad
    await world.settle()
    assert world.has(DEPLOYMENTS)
    told = world.condition("Ready")
    assert told["reason"] == Reason.UNREADABLE_OBJECT.value
    assert "Service team llama: metadata.labels.a" in told["message"]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children: Any = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    found = [before] if before else []
    for key, child in children:
        found += paths(child, (*before, key))
    return found


async def everything_of_one_service() -> list[dict[str, Any]]:
    world = OneService(autoscaling={"maxReplicas": 4, "provider": "External"})
    await world.settle()
    pod = {
        **a_pod({"terminated": {"exitCode": 1, "reason": "Error"}}, claims=("c",)),
        "apiVersion": "v1",
        "kind": "Pod",
    }
    metadata = {**pod["metadata"], "namespace": "team", "uid": "p", "labels": LABELS}
    world.see({**pod, "metadata": metadata})
    world.is_rolled_out()
    return list(world.cluster.objects.values())


@settings(max_examples=100, deadline=None)
@given(data=st.data())
async def test_no_junk_anywhere_in_an_object_breaks_a_pass(data: st.DataObject) -> None:
    objects = await everything_of_one_service()
    world = OneService(autoscaling={"maxReplicas": 4, "provider": "External"})
    index = data.draw(st.integers(0, len(objects) - 1))
    victim = copy.deepcopy(objects[index])
    path = data.draw(st.sampled_from(paths(victim)))
    place: Any = victim
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(JUNK)
    for number, live in enumerate(objects):
        world.cluster.put(live)
        world.cache.observe(victim if number == index else live)
    world.cluster.refusals.clear()
    await world.reconciler.reconcile(KEY)


def test_equal_field_names_of_two_objects_are_one_text_in_memory() -> None:
    texts = (json.dumps(an_object(SERVICES, name=name)) for name in ("a", "b"))
    one, other = (understood(json.loads(text))["metadata"] for text in texts)
    assert [id(key) for key in one] == [id(key) for key in other]
