"""Decides once which engine a service runs.

An upgrade of the operator brings new default images. Using them immediately would restart every GPU
pod of the cluster. So a service keeps its first image until its own spec requests another. A
default image with which no replica has been ready is not kept, because it may not exist.
"""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.manifest import may_change
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload.pin import EnginePin, pin_of_annotations
from llmservice_operator.workload.registry import workload_of


def resolve_pin(
    service: LLMService, live_workload: Manifest | None, settings: OperatorSettings
) -> EnginePin:
    """Return the engine pin of the service. Its image is the first of these that applies:

    1. the image of the spec
    2. the image that the last pass recorded, if it is a default image for the accelerator of the
       spec, a replica has been ready with it, and the spec names no other version
    3. the operator's default for the accelerator

    The record is in the status. If the status was lost, the record in the live workload is used.

    Raises InvalidSpec if the operator has no image for the accelerator. Also raises it if the spec
    names a version without an image, and neither the recorded nor the default image contains that
    version.
    """
    accelerator = service.spec.accelerator.type
    kept = recorded_pin(service, live_workload)
    image, wanted = service.spec.engine.image, service.spec.engine.version
    images = settings.images
    if image is not None:
        return _pin_of_spec(image, wanted, kept, images.engine_version)
    if (
        kept is not None
        and not kept.untried
        and kept.default_for == accelerator
        and wanted in (None, kept.version)
    ):
        return kept
    if wanted not in (None, images.engine_version):
        raise InvalidSpec(
            f"the operator's image holds vLLM {images.engine_version}: set {images.engine_version},"
            f" or set spec.engine.image to an image that holds vLLM {wanted}",
            "spec.engine.version",
        )
    default = {
        AcceleratorType.NVIDIA: images.gpu,
        AcceleratorType.AMD: images.amd,
        AcceleratorType.CPU: images.cpu,
    }[accelerator]
    if not default:
        raise InvalidSpec(
            "is required, because the operator has no image for AMD GPUs: set it, or the chart "
            "value server.amdImage",
            "spec.engine.image",
        )
    return EnginePin(default, images.engine_version, accelerator.value, untried=True)


def recorded_pin(service: LLMService, live_workload: Manifest | None) -> EnginePin | None:
    """Return the pin of the last pass. None if neither the status nor the workload records one."""
    return _pin_of_status(service) or _pin_of_workload(service, live_workload)


def _pin_of_spec(image: str, wanted: str | None, kept: EnginePin | None, brought: str) -> EnginePin:
    assumed = brought
    if kept is not None and kept.image == image:
        assumed = kept.assumed_version or kept.version
    version = wanted or assumed
    return EnginePin(image, version, assumed_version=None if assumed == version else assumed)


def _pin_of_status(service: LLMService) -> EnginePin | None:
    engine = service.status.engine
    if engine is None:
        return None
    return EnginePin(
        engine.image,
        engine.version,
        engine.default_for,
        engine.assumed_version,
        untried=bool(engine.untried),
    )


def _pin_of_workload(service: LLMService, live: Manifest | None) -> EnginePin | None:
    if live is None or not may_change(live, service):
        return None
    image = workload_of(service).pinned_image(live)
    return None if image is None else pin_of_annotations(live, image)
