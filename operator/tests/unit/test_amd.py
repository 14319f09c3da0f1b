"""Tests services on AMD GPUs: image, resource, groups, tolerations, plan and catalogue."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from llmservice_operator.api.server_defaults import ServerDefaults
from llmservice_operator.catalogue import new_service
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.plan import Plans
from llmservice_operator.scaling.hardware import DATA_SHEETS, is_amd
from llmservice_operator.settings import OperatorSettings, ServerImages
from llmservice_operator.workload import EnginePin, resolve_pin
from operator_support.services import SETTINGS, a_service, one

GROUPS = OperatorSettings(
    images=SETTINGS.images, server_defaults=ServerDefaults(amd_groups=(44, 109))
)


def pod(
    accelerator: dict[str, Any], settings: OperatorSettings = SETTINGS, **spec: Any
) -> dict[str, Any]:
    service = a_service({"accelerator": accelerator, **spec})
    context = Context.of(service, settings, resolve_pin(service, None, settings))
    found: dict[str, Any] = one("Deployment", build_all(context))["spec"]["template"]["spec"]
    return found


def test_amd_gpus_have_their_own_image_and_resource_and_the_engine_arguments_of_gpus() -> None:
    (amd,) = pod({"type": "amd", "count": 2})["containers"]
    (nvidia,) = pod({"count": 2})["containers"]
    assert amd["image"] == "registry/amd:1"
    assert amd["resources"]["limits"] == {"amd.com/gpu": "2"}
    assert amd["args"] == nvidia["args"]
    assert "--tensor-parallel-size=2" in amd["args"]


def test_pods_on_amd_gpus_tolerate_the_taint_of_their_nodes() -> None:
    def taints(accelerator: dict[str, Any]) -> list[str]:
        return [each["key"] for each in pod(accelerator)["tolerations"]]

    assert taints({"type": "amd"}) == ["amd.com/gpu"]
    part = {"type": "amd", "resourceName": "amd.com/cpx_nps4"}
    assert taints(part) == ["amd.com/cpx_nps4", "amd.com/gpu"]


def test_only_pods_on_amd_gpus_join_the_groups_of_their_device_files() -> None:
    assert pod({"type": "amd"}, GROUPS)["securityContext"]["supplementalGroups"] == [44, 109]
    for accelerator in ({}, {"type": "cpu"}):
        assert pod(accelerator, GROUPS) == pod(accelerator)
    assert "supplementalGroups" not in pod({"type": "amd"})["securityContext"]


def test_a_service_on_amd_gpus_needs_an_image() -> None:
    settings = OperatorSettings(images=ServerImages(gpu="a", cpu="b"))
    with pytest.raises(InvalidSpec) as refused:
        pod({"type": "amd"}, settings)
    assert str(refused.value) == (
        "spec.engine.image: is required, because the operator has no image for AMD GPUs: set it, "
        "or the chart value server.amdImage"
    )
    (own,) = pod({"type": "amd"}, settings, engine={"image": "mine:1"})["containers"]
    assert own["image"] == "mine:1"


def test_another_type_of_accelerator_does_not_keep_the_image() -> None:
    service = a_service({"accelerator": {"type": "amd"}})
    kept = EnginePin("registry/amd:0", "0.31.0", "amd")
    status = {"engine": {"image": kept.image, "version": kept.version, "defaultFor": "amd"}}
    stored = service.model_validate(
        {"metadata": {"name": "a"}, "spec": {"model": {"uri": "hf://o/m"}}, "status": status}
    )
    assert resolve_pin(stored, None, SETTINGS).image == "registry/gpu:1"
    of_amd = stored.model_copy(update={"spec": service.spec})
    assert resolve_pin(of_amd, None, SETTINGS) == replace(kept, untried=False)


@pytest.mark.parametrize(("type_", "gpu"), [("amd", "H100"), ("nvidia", "AMD_Instinct_MI300X_OAM")])
def test_a_gpu_of_another_maker_is_refused(type_: str, gpu: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        pod({"type": type_, "class": gpu})
    other = {"amd": "nvidia", "nvidia": "amd"}[type_]
    assert str(refused.value) == (
        f"spec.accelerator.type: is {type_}, and {gpu} is no such GPU: set {other}, or another "
        "class"
    )


def test_the_makers_of_all_known_gpus_are_known() -> None:
    of_amd = {product for product, _ in DATA_SHEETS if is_amd(product)}
    assert of_amd == {"MI355X", "MI350X", "MI325X", "MI300X", "MI210"}


def test_a_new_service_on_an_amd_gpu_has_its_type() -> None:
    text = new_service("qwen3-8b", "MI300X", lambda text: Plans(text, (None,)))
    assert yaml.safe_load(text)["spec"]["accelerator"] == {
        "type": "amd",
        "class": "MI300X",
        "count": 1,
    }
