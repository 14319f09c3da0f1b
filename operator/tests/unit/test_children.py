"""Tests the declarations of children: their common part, and the part of each kind."""

from importlib import import_module
from pkgutil import iter_modules

import pytest

from llmservice_operator import children, names
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import CHILDREN, Child, Context, build_all, cache_claim
from llmservice_operator.kinds import (
    AUTOSCALERS,
    NETWORK_POLICIES,
    PODS,
    SCALED_OBJECTS,
    Kind,
    kind_of,
)
from llmservice_operator.rights import OPERATOR
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service


def context(service: LLMService) -> Context:
    return Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS))


def test_children_are_applied_in_the_order_of_their_registration() -> None:
    service = a_service(
        {
            "autoscaling": {"maxReplicas": 4},
            "router": {"enabled": True},
            "model": {
                "uri": "hf://org/model",
                "cache": {"type": "PersistentVolumeClaim", "size": "200Gi"},
            },
        }
    )
    built = [(kind_of(each), each["metadata"]["name"]) for each in build_all(context(service))]
    declared = [(child.kind, child.name(service)) for child in CHILDREN]
    assert built == [each for each in declared if each in built]
    assert {
        ("NetworkPolicy", "qwen"),
        ("Deployment", "qwen-router"),
        ("PersistentVolumeClaim", "qwen-cache"),
    } <= {(kind.kind, name) for kind, name in built}


def test_every_child_is_labelled_and_owned_by_the_service() -> None:
    for manifest in build_all(context(a_service({"router": {"enabled": True}}))):
        metadata = manifest["metadata"]
        assert metadata["labels"] == names.labels(a_service({}))
        (owner,) = metadata["ownerReferences"]
        assert owner["controller"], manifest["kind"]


def test_every_child_and_no_pod_has_the_labels_and_annotations_of_the_spec() -> None:
    own = {"labels": {"team": "search"}, "annotations": {"a.b/c": "d", "a.b/e": "f"}}
    spec = {
        "objectMetadata": own,
        "router": {"enabled": True},
        "service": {"annotations": {"a.b/c": "of the Service"}},
    }
    for manifest in build_all(context(a_service(spec))):
        metadata = manifest["metadata"]
        assert metadata["labels"] == {"team": "search", **names.labels(a_service({}))}
        assert metadata["annotations"]["a.b/e"] == "f"
        is_service = (manifest["kind"], metadata["name"]) == ("Service", "qwen")
        assert metadata["annotations"]["a.b/c"] == ("of the Service" if is_service else "d")
        template = manifest.get("spec", {}).get("template")
        assert template is None or "team" not in template["metadata"]["labels"]


def test_labels_of_the_spec_never_replace_the_operators_own() -> None:
    service = a_service({"objectMetadata": {"labels": {"team": "search"}}})
    forced = {"app.kubernetes.io/instance": "other"}
    spec = service.spec.model_copy(
        update={
            "object_metadata": service.spec.object_metadata.model_copy(update={"labels": forced})
        }
    )
    for manifest in build_all(context(service.model_copy(update={"spec": spec}))):
        assert manifest["metadata"]["labels"] == names.labels(service)


MODULES = sorted(each.name for each in iter_modules(children.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_every_child_that_a_module_declares_is_registered(name: str) -> None:
    module = import_module(f"{children.__name__}.{name}")
    declared = {value for value in vars(module).values() if isinstance(value, Child)}
    declared |= {*getattr(module, "CHILDREN", ())}
    missing = declared - {*CHILDREN}
    assert not missing, (
        f"children/{name}.py is in no list: import it in children/__init__.py, and add "
        f"{name}.CHILD to CHILDREN there, in its place in the order of applying"
    )


def test_no_two_children_are_the_same_object() -> None:
    objects = [(child.kind.kind, child.name(a_service())) for child in CHILDREN]
    assert len({*objects}) == len(objects), objects


@pytest.mark.parametrize("kind", {child.kind for child in CHILDREN}, ids=lambda kind: kind.kind)
def test_the_operator_may_delete_objects_of_a_kind_exactly_where_it_prunes_one(kind: Kind) -> None:
    (right,) = [right for right in OPERATOR if right.kind is kind and not right.subresource]
    is_pruned = any(child.is_pruned for child in CHILDREN if child.kind is kind)
    assert ("delete" in right.verbs) is is_pruned, (
        f"the right to delete a {kind.kind} follows from is_pruned of its Child: set it "
        "there, and grant nothing else in rights.py"
    )


def test_the_operator_deletes_nothing_but_children() -> None:
    others = {right.kind for right in OPERATOR} - {child.kind for child in CHILDREN}
    assert not [each for each in OPERATOR if each.kind in others and "delete" in each.verbs]


def test_optional_children_are_pruned_and_those_that_serve_or_hold_data_never_are() -> None:
    pruned = {child.kind for child in CHILDREN if child.is_pruned}
    assert {NETWORK_POLICIES, AUTOSCALERS, SCALED_OBJECTS} <= pruned
    kept = (*children.workload.CHILDREN, children.kubernetes_service.CHILD, cache_claim.CHILD)
    assert not any(child.is_pruned for child in kept)


def test_a_child_whose_watch_would_bring_the_objects_of_others_is_refused() -> None:
    everything = Kind("example.org", "v1", "Anything", "anythings")
    with pytest.raises(ValueError, match="Anything must be watched by the labels of children"):
        Child(kind=everything, body=lambda _: {})


def test_a_kind_is_declared_once() -> None:
    with pytest.raises(ValueError, match="Pod of v1 is declared already"):
        Kind(PODS.group, PODS.version, PODS.kind, PODS.plural)


def test_what_the_api_server_refuses_for_another_reason_has_no_substitute() -> None:
    by_kind = {child.kind: child for child in CHILDREN}
    assert by_kind[AUTOSCALERS].substitute({}, "exceeded quota") is None
    assert by_kind[NETWORK_POLICIES].substitute({}, ".tolerance") is None
