"""Tests an optional kind whose CustomResourceDefinition is installed and removed at run time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.kinds import AUTOSCALERS, LLMSERVICES, SCALED_OBJECTS
from operator_support.forked import ForkedOperator
from operator_support.processes import (
    Api,
    ApiError,
    condition,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = f"{SCALED_OBJECTS.plural}.{SCALED_OBJECTS.group}"
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": NAME},
    "spec": {
        "group": SCALED_OBJECTS.group,
        "scope": "Namespaced",
        "names": {"kind": SCALED_OBJECTS.kind, "plural": SCALED_OBJECTS.plural},
        "versions": [
            {
                "name": SCALED_OBJECTS.version,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": ANYTHING}}},
            }
        ],
    },
}
"""The only part of KEDA that the operator itself uses."""

WITHIN_SECONDS = 60.0


def install_the_definition(api: Api) -> None:
    """Install the CRD; return once the API server serves the kind."""
    api.request("POST", CRDS, DEFINITION)

    def is_served() -> bool:
        try:
            api.list_all(SCALED_OBJECTS, "default")
        except (ApiError, ValueError):  # not found, as JSON and as plain text
            return False
        return True

    eventually(is_served, 15)


def remove_the_definition(api: Api) -> None:
    """Delete the CRD; return once it is gone.

    The API server refuses a CRD of the same name until all objects of the old CRD are deleted.
    """

    def is_gone() -> bool:
        try:
            api.request("DELETE", f"{CRDS}/{NAME}")
        except ApiError as error:
            if error.status != 404:
                raise
            return True
        return False

    eventually(is_gone, 15)


@pytest.fixture
def definition(api: Api) -> Iterator[None]:
    """Delete the CRD before and after the test."""
    remove_the_definition(api)
    yield
    remove_the_definition(api)


def test_a_kind_is_used_within_a_minute_of_its_installation_and_reported_missing_after_removal(
    api: Api, namespace: str, log: Path, definition: None
) -> None:
    def reason() -> Any:
        return condition(api.get(LLMSERVICES, namespace, "llm"), "AutoscalingActive")["reason"]

    settings = {"WATCH_NAMESPACES": namespace, "KEDA": "true", "AUDIT_PERIOD_SECONDS": "2"}
    with ForkedOperator(log, namespace, **settings) as operator:
        operator.until_leading()
        scaling = {"maxReplicas": 3, "provider": "KEDA"}
        api.create(LLMSERVICES, make_service("llm", namespace, autoscaling=scaling))
        eventually(lambda: reason() == "KEDAMissing", 15)

        install_the_definition(api)
        eventually(lambda: api.read(SCALED_OBJECTS, namespace, "llm"), WITHIN_SECONDS)
        found = api.get(SCALED_OBJECTS, namespace, "llm")
        assert found["spec"]["maxReplicaCount"] == 3
        eventually(lambda: reason() != "KEDAMissing", 15)
        until_settled(operator, 3)

        # The new kind is watched like every other kind of child, not polled.
        api.delete(SCALED_OBJECTS, namespace, "llm")
        eventually(lambda: api.read(SCALED_OBJECTS, namespace, "llm"), 5)

        remove_the_definition(api)
        eventually(lambda: reason() == "KEDAMissing", WITHIN_SECONDS)
        api.patch(
            LLMSERVICES, namespace, "llm", {"spec": {"autoscaling": {"provider": "External"}}}
        )
        eventually(lambda: api.read(AUTOSCALERS, namespace, "llm"), 15)
        operator.until_ready()
        assert operator.terminate() == 0
    assert "llmservice.yaml" not in log.read_text()
