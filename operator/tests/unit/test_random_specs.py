"""Tests, with random specs, properties of every spec that the API server accepts."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import EngineStatus
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.workload import resolve_pin
from operator_support.examples import EXAMPLE_SPECS
from operator_support.services import SETTINGS, a_body
from operator_support.spec_fields import SCHEMA
from random_specs import Spec, many_valid_specs
from spec_table import ACCEPTED

SPECS = 400
"""Number of random specs. All tests share them, because drawing them takes most of the time."""


class Operator:
    """The operator's only memory between two passes: the engine in the status."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}

    def build(self, spec: Spec) -> list[Manifest] | None:
        """Return the service's objects, or None if its engine cannot run the spec."""
        service = LLMService.parse(a_body(copy.deepcopy(spec), status=self._status))
        try:
            pin = resolve_pin(service, None, SETTINGS)
            engine = EngineStatus.model_validate(dataclasses.asdict(pin))
            self._status = {"engine": engine.model_dump(by_alias=True, exclude_none=True)}
            return build_all(Context.of(service, SETTINGS, pin))
        except InvalidSpec:
            return None


def paths(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from paths(field, f"{path}.{name}")
    if "items" in schema:
        yield from paths(schema["items"], path)


def drawn(value: Any, path: str) -> Iterator[str]:
    yield path
    if isinstance(value, dict):
        for name, each in value.items():
            yield from drawn(each, f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from drawn(each, path)


@pytest.fixture(scope="module")
def specs() -> list[Spec]:
    return many_valid_specs(SPECS)


def test_every_field_is_in_a_spec_that_an_api_server_accepts() -> None:
    written = (*ACCEPTED.values(), *EXAMPLE_SPECS.values())
    seen = {path for spec in written for path in drawn(spec, "spec")}
    missing = sorted({*paths(SCHEMA, "spec")} - seen)
    assert not missing, (
        f"no spec has {', '.join(missing)}: add a line to one of crds/examples, or a spec to "
        "operator/tests/specs/accepted.yaml"
    )


def test_the_result_of_a_spec_does_not_depend_on_earlier_specs(specs: list[Spec]) -> None:
    for first, second in zip(specs[::2], specs[1::2], strict=True):
        operator = Operator()
        built = operator.build(first)
        assert Operator().build(first) == built
        operator.build(second)
        assert operator.build(first) == built, f"{second} changes the result of {first}"


def test_many_random_specs_can_be_built(specs: list[Spec]) -> None:
    built = [spec for spec in specs if Operator().build(spec) is not None]
    assert len(built) > len(specs) / 4, "give the new field likely values in random_specs.LIKELY"


def test_another_process_builds_the_same_objects(specs: list[Spec]) -> None:
    """An order that depends on addresses or on salted hashes would differ between processes."""
    built = [Operator().build(spec) for spec in specs[:50]]
    program = (
        "import json, sys; from test_random_specs import Operator;"
        "print(json.dumps([Operator().build(spec) for spec in json.load(sys.stdin)]))"
    )
    folders = [Path(__file__).parent, *map(Path, sys.path)]
    printed = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(specs[:50]),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(map(str, folders))},
    ).stdout
    assert json.dumps(built) == printed.strip()
