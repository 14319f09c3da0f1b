"""Tests what the metrics server takes from the spec: limits, target and prior."""

from typing import Any

import pytest

from llmservice_operator.api.accelerator_class import AcceleratorClass
from llmservice_operator.desired.step_prior import UNKNOWN_PRIOR, prior_of
from operator_support.fleet import KEY, World
from operator_support.services import a_service


@pytest.fixture
def world() -> World:
    made = World()
    made.pods.add("a")
    made.pods.add("b")
    return made


async def test_the_spec_sets_the_limits_and_the_target(world: World) -> None:
    strict, loose = world.services[0], world.fleet()
    await world.run(90, 8, loose)
    usual = loose.reports[KEY].capacity_requests_per_second
    assert usual is not None
    assert loose.reports[KEY].target_percent == 85

    strict["metadata"]["generation"] = 2
    strict["spec"]["slo"] = {"ttftMilliseconds": 500, "itlMilliseconds": 20}
    strict["spec"]["autoscaling"] = {"maxReplicas": 4, "targetGPUUtilization": 70}
    await world.run(10, 8, loose)

    report = loose.reports[KEY]
    assert report.capacity_requests_per_second is not None
    assert report.capacity_requests_per_second < usual
    assert report.target_percent == 70


async def first_prior(world: World, **spec: Any) -> tuple[float, ...]:
    """Return the coefficients of the step model of a service before any learning."""
    world.services[0]["spec"].update(spec)
    fleet = world.fleet()
    await world.run(30, 8, fleet)
    found = fleet.reports[KEY].calibration
    assert found is not None
    return found.step_seconds


async def test_learning_begins_with_the_gpu_of_an_accelerator_class(world: World) -> None:
    world.classes = {"big": AcceleratorClass(gpu="H100")}
    by_name = a_service({"accelerator": {"class": "H100"}}).spec

    assert await first_prior(world, accelerator={"class": "big"}) == prior_of(by_name).coefficients


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"accelerator": {"class": "unheard-of"}}, id="an unknown class"),
        pytest.param({"model": {"uri": "no-scheme"}}, id="a spec that cannot be read"),
    ],
)
async def test_learning_begins_with_a_small_gpu_where_the_spec_names_none(
    world: World, spec: dict[str, Any]
) -> None:
    assert await first_prior(world, **{"accelerator": {}, **spec}) == UNKNOWN_PRIOR.coefficients


async def test_the_limits_of_a_spec_hold_although_its_class_is_unknown(world: World) -> None:
    fleet = world.fleet()
    world.services[0]["spec"]["accelerator"] = {"class": "unheard-of"}
    world.services[0]["spec"]["autoscaling"] = {"maxReplicas": 4, "targetGPUUtilization": 70}
    await world.run(90, 8, fleet)

    assert fleet.reports[KEY].target_percent == 70
