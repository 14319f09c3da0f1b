"""The declarations of children: what every child has in common, and what is left to each."""

import pytest

from llmservice_operator import names
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import CHILDREN, Child, Context, build_all
from llmservice_operator.kinds import AUTOSCALERS, NETWORK_POLICIES, PODS, Kind, kind_of
from llmservice_operator.workload import resolve_pin
from operator_support.services import SETTINGS, a_service


def context(service: LLMService) -> Context:
    return Context.of(service, SETTINGS, resolve_pin(service, None, SETTINGS))


def test_children_are_applied_in_the_order_of_their_registration() -> None:
    service = a_service(
        {
            "autoscaling": {"maxReplicas": 4},
            "model": {
                "uri": "hf://org/model",
                "cache": {"type": "PersistentVolumeClaim", "size": "200Gi"},
            },
        }
    )
    built = [kind_of(each) for each in build_all(context(service))]
    assert built == [child.kind for child in CHILDREN if child.kind in built]
    assert {"NetworkPolicy", "PersistentVolumeClaim"} <= {kind.kind for kind in built}


def test_every_child_is_labelled_and_owned_by_the_service() -> None:
    for manifest in build_all(context(a_service({}))):
        metadata = manifest["metadata"]
        assert metadata["labels"] == names.labels(a_service({}))
        (owner,) = metadata["ownerReferences"]
        assert owner["controller"], manifest["kind"]


def test_only_a_child_that_is_pruned_needs_the_right_to_delete() -> None:
    may_delete = {child.kind.kind for child in CHILDREN if "delete" in child.verbs}
    assert may_delete == {"NetworkPolicy", "HorizontalPodAutoscaler", "ScaledObject"}


def test_a_child_whose_watch_would_bring_the_objects_of_others_is_refused() -> None:
    everything = Kind("example.org", "v1", "Anything", "anythings")
    with pytest.raises(ValueError, match="Anything must be watched by the labels of children"):
        Child(kind=everything, body=lambda _: {})


def test_a_kind_is_declared_once() -> None:
    with pytest.raises(ValueError, match="Pod of v1 is declared already"):
        Kind(PODS.group, PODS.version, PODS.kind, PODS.plural)


def test_what_the_api_server_refuses_for_another_reason_has_no_substitute() -> None:
    children = {child.kind: child for child in CHILDREN}
    assert children[AUTOSCALERS].substitute({}, "exceeded quota") is None
    assert children[NETWORK_POLICIES].substitute({}, ".tolerance") is None
