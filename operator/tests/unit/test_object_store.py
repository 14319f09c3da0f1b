"""Tests the variables that let a replica find an object store and sign in."""

from typing import Any

import pytest

from llmservice_operator.desired.environment import build_environment
from llmservice_operator.settings import OperatorSettings
from operator_support.services import a_service

ENDPOINT = "https://s3.example.com:9000"


def variables(store: dict[str, Any] | None) -> dict[str, Any]:
    model = {"uri": "s3://weights/llama", **({} if store is None else {"objectStore": store})}
    built = build_environment(a_service({"model": model}), OperatorSettings())
    return {
        each["name"]: each.get("value", each.get("valueFrom"))
        for each in built
        if each["name"].startswith(("AWS_", "RUNAI_"))
    }


def test_a_role_of_the_account_needs_no_variable() -> None:
    assert variables(None) == {}


def test_an_access_key_is_only_referenced() -> None:
    store = {"region": "eu-central-1", "credentialsSecretRef": {"name": "reader"}}
    assert variables(store) == {
        "AWS_DEFAULT_REGION": "eu-central-1",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "1",
        "AWS_ACCESS_KEY_ID": {"secretKeyRef": {"name": "reader", "key": "AWS_ACCESS_KEY_ID"}},
        "AWS_SECRET_ACCESS_KEY": {
            "secretKeyRef": {"name": "reader", "key": "AWS_SECRET_ACCESS_KEY"}
        },
    }


@pytest.mark.parametrize(
    ("store", "virtual"),
    [
        ({"endpoint": ENDPOINT}, "0"),
        ({"endpoint": ENDPOINT, "addressing": "VirtualHost"}, "1"),
        ({"endpoint": ENDPOINT, "addressing": "Path"}, "0"),
        ({"addressing": "Path"}, "0"),
        ({}, "1"),
    ],
)
def test_the_buckets_name_is_in_the_path_of_an_endpoint_unless_the_spec_says_otherwise(
    store: dict[str, Any], virtual: str
) -> None:
    found = variables(store)
    assert found["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] == virtual
    # Two libraries read from the store, and each has its own variable.
    endpoints = {found.get("AWS_ENDPOINT_URL"), found.get("RUNAI_STREAMER_S3_ENDPOINT")}
    assert endpoints == {store.get("endpoint")}
