"""Tests the real API server's verdict on specs, and on the objects of the accepted specs."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import REQUIRED_KINDS, Context, build_all
from llmservice_operator.cluster.client import as_yaml
from llmservice_operator.desired import Autoscaler, is_up_to_date
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import kind_of
from llmservice_operator.names import FIELD_MANAGER
from llmservice_operator.workload import resolve_pin
from operator_support.dry_run import NAMESPACE, an_object, create
from operator_support.processes import Api, ApiError
from operator_support.services import SETTINGS, a_body
from random_specs import Spec, many_valid_specs
from spec_table import ACCEPTED, REFUSED, Refused, plain

RANDOM_SPECS = 200


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refuses(api: Api, case: Refused) -> None:
    service = {**an_object(case.spec or {}, case.name or "valid"), **(case.body or {})}
    with pytest.raises(ApiError) as refused:
        create(api, service)
    assert plain(refused.value.message) == case.says


def test_the_table_is_long() -> None:
    assert len(REFUSED) > 250
    assert len(ACCEPTED) > 50


@pytest.mark.parametrize("spec", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts(api: Api, spec: Spec) -> None:
    stored = create(api, an_object(spec))
    for manifest in built(stored["spec"], "valid"):
        assert_taken_as_sent(api, manifest)


def test_the_api_server_stores_the_objects_of_random_specs_as_sent(api: Api) -> None:
    def can_be_built(spec: Spec) -> bool:
        try:
            return bool(built(spec, "random"))
        except InvalidSpec:
            return False

    specs = many_valid_specs(RANDOM_SPECS, can_be_built)

    def judge(spec: Spec) -> None:
        # The objects are built from the spec as the API server stores it, with its defaults and
        # in its order.
        stored = create(api, an_object(spec, "random"))
        for manifest in built(stored["spec"], "random"):
            assert_taken_as_sent(api, manifest)

    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(judge, specs):
            pass


def built(spec: Spec, name: str) -> list[Manifest]:
    metadata = {"name": name, "namespace": NAMESPACE, "uid": "uid-1", "generation": 1}
    service = LLMService.parse(a_body(spec, metadata=metadata))
    # This API server drops the tolerance and serves no optional kind.
    autoscaler = replace(Autoscaler.of_spec(service), with_tolerance=False)
    pin = resolve_pin(service, None, SETTINGS)
    context = Context.of(service, SETTINGS, pin, autoscaler=autoscaler)
    return [each for each in build_all(context) if kind_of(each) in REQUIRED_KINDS]


def assert_taken_as_sent(api: Api, manifest: Manifest) -> None:
    """Assert that the API server stores the manifest as sent, so a second pass writes nothing."""
    _assert_taken(api, json.dumps(manifest, sort_keys=True))


@cache
def _assert_taken(api: Api, text: str) -> None:
    """Send one manifest. It is sent once, because many specs have some objects in common."""
    manifest = json.loads(text)
    taken = api.request(
        "PATCH",
        kind_of(manifest).path(NAMESPACE, manifest["metadata"]["name"]),
        as_yaml(manifest),
        "application/apply-patch+yaml; charset=utf-8",
        fieldManager=FIELD_MANAGER,
        force="true",
        fieldValidation="Strict",
        dryRun="All",
    )
    assert is_up_to_date(taken, manifest), (manifest, taken)
