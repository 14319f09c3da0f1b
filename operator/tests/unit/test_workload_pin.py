"""Tests the engine of a service after upgrades, lost objects and other changes."""

import dataclasses
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.api.status import EngineStatus
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import OperatorSettings, ServerImages
from llmservice_operator.workload import EnginePin, resolve_pin
from operator_support.services import SETTINGS, a_service, one

UPGRADED = OperatorSettings(
    images=ServerImages(gpu="registry/gpu:2", cpu="registry/cpu:2", engine_version="0.33.0")
)
FIRST_GPU = EnginePin("registry/gpu:1", "0.32.0", "nvidia")
NEW_GPU = dataclasses.replace(FIRST_GPU, untried=True)
UPGRADED_GPU = EnginePin("registry/gpu:2", "0.33.0", "nvidia", untried=True)


def pinned(pin: EnginePin, spec: dict[str, Any] | None = None) -> LLMService:
    """Return a service whose status reports the engine in `pin`."""
    engine = EngineStatus.model_validate(dataclasses.asdict(pin))
    status = {"engine": engine.model_dump(by_alias=True, exclude_none=True)}
    return a_service(spec, status=status)


def running(pin: EnginePin) -> Manifest:
    return one("Deployment", build_all(Context.of(a_service(), SETTINGS, pin)))


def test_a_new_service_gets_the_default_image_for_its_accelerator() -> None:
    assert resolve_pin(a_service(), None, SETTINGS) == NEW_GPU
    on_cpu = a_service({"accelerator": {"type": "cpu"}})
    first_cpu = EnginePin("registry/cpu:1", "0.32.0", "cpu", untried=True)
    assert resolve_pin(on_cpu, None, SETTINGS) == first_cpu


def test_an_upgrade_of_the_operator_changes_no_engine() -> None:
    assert resolve_pin(pinned(FIRST_GPU), None, UPGRADED) == FIRST_GPU


def test_a_default_image_that_never_ran_gives_way_to_a_new_default() -> None:
    service = pinned(NEW_GPU)
    assert resolve_pin(service, running(FIRST_GPU), SETTINGS) == NEW_GPU
    assert resolve_pin(service, running(FIRST_GPU), UPGRADED) == UPGRADED_GPU


def test_a_lost_status_is_read_from_the_live_deployment() -> None:
    assert resolve_pin(a_service(), running(FIRST_GPU), UPGRADED) == FIRST_GPU


def test_the_status_has_priority_over_an_edited_deployment() -> None:
    edited = running(EnginePin("somebody/else:9", "0.31.0", "nvidia"))
    assert resolve_pin(pinned(FIRST_GPU), edited, UPGRADED) == FIRST_GPU


def test_the_image_of_the_spec_has_priority_over_every_pin() -> None:
    service = pinned(FIRST_GPU, {"engine": {"image": "mine:1"}})
    pin = resolve_pin(service, running(FIRST_GPU), SETTINGS)
    assert pin == EnginePin("mine:1", "0.32.0", None)


def test_the_version_of_an_image_of_the_spec_survives_an_upgrade() -> None:
    mine = EnginePin("mine:1", "0.32.0")
    assert resolve_pin(pinned(mine, {"engine": {"image": "mine:1"}}), None, UPGRADED) == mine


def test_removing_the_image_from_the_spec_gives_the_default_back() -> None:
    mine = EnginePin("mine:1", "0.32.0")
    assert resolve_pin(pinned(mine), running(mine), SETTINGS) == NEW_GPU


def test_another_accelerator_gets_the_default_image_for_it() -> None:
    service = pinned(FIRST_GPU, {"accelerator": {"type": "cpu"}})
    pin = resolve_pin(service, running(FIRST_GPU), UPGRADED)
    assert pin == EnginePin("registry/cpu:2", "0.33.0", "cpu", untried=True)


def test_a_deployment_of_another_owner_pins_nothing() -> None:
    foreign = running(EnginePin("foreign:1", "0.31.0", "nvidia"))
    foreign["metadata"]["ownerReferences"][0]["uid"] = "uid-2"
    assert resolve_pin(a_service(), foreign, SETTINGS) == NEW_GPU


def wanting(version: str, **engine: str) -> dict[str, Any]:
    return {"engine": {"version": version, **engine}}


def test_a_version_and_an_image_of_the_spec_belong_together() -> None:
    service = a_service(wanting("0.31.0", image="mine:1"))
    pin = EnginePin("mine:1", "0.31.0", assumed_version="0.32.0")
    assert resolve_pin(service, None, SETTINGS) == pin


UNSAID: dict[str, Any] = {"engine": {"image": "mine:1"}}
SAID = wanting("0.31.0", image="mine:1")


@pytest.mark.parametrize("lost", [False, True], ids=["status", "a lost status"])
@pytest.mark.parametrize("settings", [SETTINGS, UPGRADED], ids=["one operator", "an upgrade"])
def test_a_version_that_is_set_and_removed_leaves_the_previous_pin(
    settings: OperatorSettings, lost: bool
) -> None:
    before = resolve_pin(a_service(UNSAID), None, SETTINGS)
    between = resolve_pin(pinned(before, SAID), None, settings)
    assert between.version == "0.31.0"
    after = a_service(UNSAID) if lost else pinned(between, UNSAID)
    assert resolve_pin(after, running(between) if lost else None, settings) == before


def test_the_assumed_version_of_an_image_is_removed_with_the_image() -> None:
    first = resolve_pin(pinned(EnginePin("mine:1", "0.31.0"), SAID), None, SETTINGS)
    other = resolve_pin(pinned(first, {"engine": {"image": "mine:2"}}), None, UPGRADED)
    assert other == EnginePin("mine:2", "0.33.0")


def test_the_version_that_is_pinned_changes_nothing() -> None:
    service = pinned(FIRST_GPU, wanting("0.32.0"))
    assert resolve_pin(service, None, UPGRADED) == FIRST_GPU


def test_the_version_that_the_operator_brings_moves_a_service_to_its_image() -> None:
    service = pinned(FIRST_GPU, wanting("0.33.0"))
    assert resolve_pin(service, None, UPGRADED) == UPGRADED_GPU


def test_a_version_that_no_image_holds_is_refused_with_what_to_set() -> None:
    with pytest.raises(InvalidSpec) as refused:
        resolve_pin(pinned(FIRST_GPU, wanting("0.31.0")), None, UPGRADED)
    assert str(refused.value) == (
        "spec.engine.version: the operator's image holds vLLM 0.33.0: set 0.33.0, or set "
        "spec.engine.image to an image that holds vLLM 0.31.0"
    )


@pytest.mark.parametrize("lost", ["annotations", "container"])
def test_a_deployment_that_lost_the_record_pins_nothing(lost: str) -> None:
    live = running(EnginePin("registry/gpu:0", "0.31.0", "nvidia"))
    if lost == "annotations":
        del live["metadata"]["annotations"]
    else:
        live["spec"]["template"]["spec"]["containers"][0]["name"] = "other"
    assert resolve_pin(a_service(), live, SETTINGS) == NEW_GPU


@pytest.mark.parametrize(
    "annotation",
    [names.ENGINE_VERSION_ANNOTATION, names.ENGINE_DEFAULT_FOR_ANNOTATION],
)
def test_a_record_that_the_status_cannot_hold_pins_nothing(annotation: str) -> None:
    live = running(EnginePin("registry/gpu:0", "0.31.0", "nvidia"))
    live["metadata"]["annotations"][annotation] = "x" * 5000
    assert resolve_pin(a_service(), live, SETTINGS) == NEW_GPU
