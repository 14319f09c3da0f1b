"""Tests that a converged pass writes nothing, and that the comparison misses no difference.

It compares the fields that the operator owns.
"""

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired import comparison, is_up_to_date
from llmservice_operator.desired.comparison import LONGEST_CACHED_KEY, find_differences
from llmservice_operator.workload import resolve_pin
from operator_support.services import HARMLESS_ARG, SETTINGS, a_service, as_live, one

HUB = {"uri": "hf://org/model"}
specs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(
            [HUB, {"uri": "pvc://c/m"}, {**HUB, "credentialsSecretRef": {"name": "t"}}]
        )
    },
    optional={
        "replicas": st.integers(0, 5),
        "accelerator": st.sampled_from([{"type": "cpu"}, {"count": 2}, {"resourceName": "a.b/c"}]),
        "engine": st.fixed_dictionaries(
            {},
            optional={
                "image": st.sampled_from(["a:1", "b:1"]),
                "maxModelLen": st.integers(1, 9),
                "extraArgs": st.sampled_from([[HARMLESS_ARG], [HARMLESS_ARG, "--block-size=16"]]),
            },
        ),
        "resources": st.sampled_from(
            [
                {"limits": {"cpu": "1000m", "memory": "1024Mi"}},
                {"requests": {"cpu": "1"}},
                {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}},
            ]
        ),
        "template": st.sampled_from(
            [
                {"nodeSelector": {"a": "b"}},
                {"nodeSelector": {"a": "b", "c": "d"}},
                {"tolerations": [{"operator": "Exists"}]},
                {"tolerations": [{"key": "k"}, {"operator": "Exists"}]},
            ]
        ),
    },
)


def build(spec: dict[str, Any]) -> list[Manifest]:
    service = a_service(spec)
    return build_all(Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS)))


@given(spec=specs)
def test_an_object_that_was_just_applied_is_up_to_date(spec: dict[str, Any]) -> None:
    for manifest in build(spec):
        assert is_up_to_date(as_live(manifest), manifest)


@settings(max_examples=300)
@given(before=specs, after=specs)
def test_a_change_of_the_spec_is_noticed_in_both_directions(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    for old, new in zip(build(before), build(after), strict=True):
        assert is_up_to_date(as_live(old), new) == _same(old, new)
        assert is_up_to_date(as_live(new), old) == _same(old, new)


def _same(one: Manifest, other: Manifest) -> bool:
    """Return whether the API server treats both values as equal, such as 1000m and 1 of cpu."""
    text = [
        repr(each).replace("'1000m'", "'1'").replace("'1024Mi'", "'1Gi'") for each in (one, other)
    ]
    return text[0] == text[1]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(child, dict | list) and child:
            yield from leaves(child, (*path, key))
        else:
            yield (*path, key)


def parent_of(manifest: Manifest, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        manifest = manifest[key]
    return manifest


EVERYTHING = build(
    {
        "model": {**HUB, "credentialsSecretRef": {"name": "t"}},
        "resources": {"limits": {"cpu": "1000m"}},
        "template": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]},
    }
)
LEAVES = [
    (index, path)
    for index, manifest in enumerate(EVERYTHING)
    for path in leaves(manifest)
    if path[0] in ("metadata", "spec")
    and path not in (("metadata", "name"), ("metadata", "namespace"))
]


@pytest.mark.parametrize(("index", "path"), LEAVES, ids=[str(path) for _, path in LEAVES])
def test_an_edit_of_any_own_field_is_noticed(index: int, path: tuple[Any, ...]) -> None:
    edited = as_live(EVERYTHING[index])
    parent_of(edited, path)[path[-1]] = "edited"
    assert not is_up_to_date(edited, EVERYTHING[index])

    removed = as_live(EVERYTHING[index])
    del parent_of(removed, path)[path[-1]]
    assert not is_up_to_date(removed, EVERYTHING[index])


@pytest.mark.parametrize(("index", "path"), LEAVES, ids=[str(path) for _, path in LEAVES])
def test_a_field_that_we_no_longer_send_is_noticed(index: int, path: tuple[Any, ...]) -> None:
    shorter = copy.deepcopy(EVERYTHING[index])
    del parent_of(shorter, path)[path[-1]]
    assert not is_up_to_date(as_live(EVERYTHING[index]), shorter)


def test_fields_that_others_added_are_ignored() -> None:
    deployment = one("Deployment", EVERYTHING)
    live = as_live(deployment)
    live["metadata"]["labels"]["team"] = "blue"
    pod = live["spec"]["template"]["spec"]
    pod["containers"].append({"name": "sidecar"})
    pod["containers"][0]["env"].append({"name": "ADDED"})
    pod["schedulerName"] = "default-scheduler"
    assert is_up_to_date(live, deployment)


@pytest.mark.parametrize(
    ("sent", "live", "same"),
    [
        ("1000m", "1", True),
        ("1024Mi", "1Gi", True),
        ("0.5", "500m", True),
        ("1", "2", False),
        ("1", "?", False),
    ],
)
def test_amounts_are_compared_as_amounts(sent: str, live: str, same: bool) -> None:
    manifest = {
        "apiVersion": "v1",
        "metadata": {"name": "a"},
        "spec": {"limits": {"cpu": sent}},
    }
    held = as_live(manifest)
    held["spec"]["limits"]["cpu"] = live
    assert is_up_to_date(held, manifest) is same


def test_a_text_that_looks_like_an_amount_is_compared_as_text() -> None:
    manifest = {"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"args": ["1000m"]}}
    held = as_live(manifest)
    held["spec"]["args"] = ["1"]
    assert not is_up_to_date(held, manifest)


def test_a_number_is_not_a_truth_value() -> None:
    manifest = {"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"on": True}}
    held = as_live(manifest)
    held["spec"]["on"] = 1
    assert not is_up_to_date(held, manifest)


def test_a_set_is_compared_without_its_order() -> None:
    manifest = {"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"set": ["b", "a"]}}
    held = as_live(manifest)
    ours = held["metadata"]["managedFields"][1]
    ours["fieldsV1"]["f:spec"]["f:set"] = {'v:"a"': {}, 'v:"b"': {}}
    held["spec"]["set"] = ["a", "x", "b"]
    assert is_up_to_date(held, manifest)
    held["spec"]["set"] = ["a", "x"]
    assert not is_up_to_date(held, manifest)


def test_a_field_that_changed_its_kind_is_noticed() -> None:
    manifest = {"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"field": {"a": 1}}}
    assert not is_up_to_date(as_live(manifest), {**manifest, "spec": {"field": "text"}})


def test_an_object_that_we_never_applied_is_not_up_to_date() -> None:
    deployment = one("Deployment", EVERYTHING)
    live = as_live(deployment)
    live["metadata"]["managedFields"] = live["metadata"]["managedFields"][:1]
    assert not is_up_to_date(live, deployment)
    del live["metadata"]["managedFields"]
    assert not is_up_to_date(live, deployment)


def test_the_status_is_compared_only_in_its_own_fields() -> None:
    manifest = {"apiVersion": "v1", "kind": "A", "metadata": {"name": "a"}, "status": {"n": 1}}
    live = {
        "metadata": {
            "managedFields": [
                {
                    "manager": "llmservice-operator",
                    "operation": "Apply",
                    "subresource": "status",
                    "fieldsV1": {"f:status": {"f:n": {}}},
                }
            ]
        },
        "status": {"n": 1, "byOthers": 2},
    }
    assert is_up_to_date(live, manifest, subresource="status")
    assert is_up_to_date(live, {"status": {"n": 1}}, subresource="status")
    assert not is_up_to_date(live, {"status": {"n": 2}}, subresource="status")
    assert not is_up_to_date(live, manifest)


def listing(names_of_items: list[str]) -> tuple[Manifest, Manifest]:
    """Return a live object with a list of items, and the manifest that created it."""
    items = [{"name": each, "value": each} for each in names_of_items]
    owned: Manifest = {
        f"k:{json.dumps({'name': each})}": {".": {}, "f:name": {}, "f:value": {}}
        for each in names_of_items
    }
    entry = {
        "manager": names.FIELD_MANAGER,
        "operation": "Apply",
        "fieldsV1": {"f:spec": {"f:items": owned}},
    }
    sent = {"spec": {"items": items}}
    return {**copy.deepcopy(sent), "metadata": {"managedFields": [entry]}}, sent


def test_the_time_of_a_comparison_grows_with_a_list_and_not_with_its_square() -> None:
    live, sent = listing([f"item-{number}" for number in range(20_000)])
    live["spec"]["items"][-1]["value"] = "edited"
    begun = time.process_time()
    (found,) = find_differences(live, sent)
    assert found.path == "spec.items[name=item-19999].value"
    # To compare each item with every other item would take minutes.
    assert time.process_time() - begun < 10


def test_long_keys_of_others_stay_out_of_the_cache_of_parsed_keys() -> None:
    live, sent = listing([letter * (LONGEST_CACHED_KEY + 1) for letter in "abc"])
    before = comparison._parsed_once.cache_info().currsize
    assert is_up_to_date(live, sent)
    assert comparison._parsed_once.cache_info().currsize == before
