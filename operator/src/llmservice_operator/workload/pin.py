"""The engine pin: the image and engine version that a service stays on."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import ValidationError

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.status import EngineStatus


@dataclass(frozen=True)
class EnginePin:
    image: str
    version: str
    """vLLM version that the arguments are written for."""
    default_for: str | None = None
    """Accelerator type for which the image was the default. None when spec.engine.image names the
    image. The pin records the type for two cases. A default may be replaced when the accelerator
    changes, and an image from the spec must be replaced when the spec no longer names it."""
    assumed_version: str | None = None
    """vLLM version that the operator assumes for an image from the spec while the spec sets no
    version: the operator's vLLM version at the time when the image was set. None if it equals
    `version`, and for the operator's own images. It stays here while the spec sets a version, so
    that removing spec.engine.version has the same effect as never setting it."""
    untried: bool = False
    """Whether this is a default image with which no replica has been ready."""


def pin_annotations(pin: EnginePin) -> dict[str, str]:
    """Return the workload's annotations from which the pin is restored if the status is lost."""
    annotations = {
        names.ENGINE_VERSION_ANNOTATION: pin.version,
        names.ENGINE_DEFAULT_FOR_ANNOTATION: pin.default_for,
        names.ENGINE_ASSUMED_VERSION_ANNOTATION: pin.assumed_version,
    }
    return {key: value for key, value in annotations.items() if value is not None}


def pin_of_annotations(live: Manifest, image: str) -> EnginePin | None:
    """Return the pin that a live workload with this image records. None if it records none."""
    annotations = live["metadata"].get("annotations", {})
    version = annotations.get(names.ENGINE_VERSION_ANNOTATION)
    if version is None:
        return None
    pin = EnginePin(
        image,
        version,
        annotations.get(names.ENGINE_DEFAULT_FOR_ANNOTATION),
        annotations.get(names.ENGINE_ASSUMED_VERSION_ANNOTATION),
    )
    try:
        EngineStatus.model_validate(asdict(pin))
    except ValidationError:
        # Any client may have written the annotations, and the status accepts only valid pins.
        return None
    return pin
