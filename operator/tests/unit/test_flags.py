"""Tests that everything about an engine flag follows from the declaration of its field."""

from typing import Annotated, Any

import pytest

from llmservice_operator.api.extra_args import FLAG_FIELDS, FLAGS_WITH_A_FIELD, SAFE_VALUES
from llmservice_operator.api.fields import Fields
from llmservice_operator.api.flags import EngineFlag, FlagField, declared_flags
from llmservice_operator.api.spec import LLMServiceSpec
from llmservice_operator.desired.engine_args import COMPUTED, build_engine_args, check_flags
from llmservice_operator.desired.flag_tables import TABLES
from operator_support.examples import EXAMPLE_SPECS
from operator_support.services import a_service
from operator_support.spec_fields import is_set, schema_of


class Inner(Fields):
    size: Annotated[int, EngineFlag("--block-size", also=("--blocks",))] | None = None
    is_on: Annotated[bool, EngineFlag("--enforce-eager")] = False


class Outer(Fields):
    inner: Inner | None = None
    plain: int = 0


def test_a_flag_is_found_with_the_path_of_its_field() -> None:
    first, second = declared_flags(engine=Outer)
    assert (first.flag.name, first.name) == ("--block-size", "engine.inner.size")
    assert (second.flag.name, second.name) == ("--enforce-eager", "engine.inner.isOn")


class Spec(Fields):
    engine: Outer


@pytest.mark.parametrize(
    ("engine", "values"),
    [
        ({}, [None, None]),
        ({"inner": {}}, [None, None]),
        ({"inner": {"size": 16, "isOn": True}}, [16, True]),
        ({"inner": {"size": 0, "isOn": False}}, [0, None]),
    ],
    ids=[
        "the object is not set",
        "no field is set",
        "all are set",
        "zero is set, a default is not",
    ],
)
def test_a_field_has_a_value_when_it_is_set(
    engine: dict[str, Any], values: list[int | bool | None]
) -> None:
    spec = Spec.model_validate({"engine": engine})
    assert [field.value(spec) for field in declared_flags(engine=Outer)] == values


def test_a_flag_that_two_fields_declare_is_named() -> None:
    class Other(Fields):
        blocks: Annotated[int, EngineFlag("--blocks")] | None = None

    with pytest.raises(TypeError, match=r"^spec\.other\.blocks and spec\.engine\.inner\.size both"):
        declared_flags(engine=Outer, other=Other)


def test_a_field_that_no_argument_can_hold_is_named() -> None:
    class Engine(Fields):
        inner: Annotated[Inner, EngineFlag("--inner")] | None = None

    with pytest.raises(TypeError, match=r"^spec\.engine\.inner sets --inner, .* is_computed=True"):
        declared_flags(engine=Engine)


def test_a_computed_flag_without_its_function_is_named() -> None:
    with pytest.raises(TypeError, match=r"^spec\.model\.uri declares --model .* COMPUTED"):
        check_flags(FLAG_FIELDS, COMPUTED.keys() - {"--model"})


def test_a_function_without_its_declaration_is_named() -> None:
    with pytest.raises(TypeError, match=r"has --seeed, which no field declares"):
        check_flags(FLAG_FIELDS, {*COMPUTED, "--seeed"})


def test_a_flag_that_no_version_has_is_named() -> None:
    class Engine(Fields):
        seed: Annotated[int, EngineFlag("--seeed")] | None = None

    with pytest.raises(TypeError, match=r"^spec\.engine\.seed sets --seeed, which no known vLLM"):
        check_flags(declared_flags(engine=Engine), ())


def test_only_the_model_and_the_engine_have_fields_that_set_flags() -> None:
    parts = {
        str(info.alias): info.annotation
        for name, info in LLMServiceSpec.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Fields)
    }
    assert {"model", "engine", "serving"} <= parts.keys()
    found = declared_flags(**parts)
    assert [field.name for field in found] == [field.name for field in FLAG_FIELDS]


WITHOUT_EXAMPLE = {
    # This field allows code to run, so no user should copy it without thinking.
    "model.trustRemoteCode",
    "engine.parallelism.pipeline",
    "engine.batching.schedulingPolicy",
    "engine.batching.maxQueuedTokens",
}


@pytest.mark.parametrize("field", FLAG_FIELDS, ids=lambda field: field.name)
def test_every_field_that_sets_a_flag_is_in_an_example(field: FlagField) -> None:
    is_shown = any(is_set(spec, field.name) for spec in EXAMPLE_SPECS.values())
    if field.name in WITHOUT_EXAMPLE:
        assert not is_shown, f"{field.name} has an example now: remove it from WITHOUT_EXAMPLE"
    else:
        assert is_shown, f"set spec.{field.name} in one of crds/examples, then run `make golden`"


WORDS = [(field, word) for field in FLAG_FIELDS for word in schema_of(field.name).get("enum", ())]


@pytest.mark.parametrize("version", TABLES)
def test_the_engine_knows_every_value_of_a_field(version: str) -> None:
    assert len(WORDS) > 10
    for field, word in WORDS:
        *parents, last = field.name.split(".")
        spec: dict[str, Any] = {last: word}
        for name in reversed(parents):
            spec = {name: spec}
        (arg,) = (
            arg
            for arg in build_engine_args(a_service(spec), version)
            if arg.startswith(f"{field.flag.name}=")
        )
        # Plugins may add loaders, so the engine's parser accepts any word as a loader.
        flag = field.flag.name
        choices = TABLES[version][flag].choices or SAFE_VALUES[flag]
        assert arg.partition("=")[2] in choices, f"{word} of {field.name} is none of {choices}"


def test_a_flag_of_which_another_is_a_part_belongs_to_the_same_field() -> None:
    assert FLAGS_WITH_A_FIELD["--spec-model"] == "engine.speculativeDecoding"
    assert FLAGS_WITH_A_FIELD["--device-memory-utilization"] == (
        "engine.gpuMemoryUtilizationPercent"
    )
