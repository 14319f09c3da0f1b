"""Applies spec.accelerator.class: returns the service with the fields of its class."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from pydantic import ValidationError

from llmservice_operator.api.accelerator import Accelerator, AcceleratorType
from llmservice_operator.api.accelerator_class import AcceleratorClass
from llmservice_operator.api.pods import ResourceAmounts, Resources, Template
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.scaling.hardware import is_amd, is_known


def gpu_price(service: LLMService, classes: Mapping[str, AcceleratorClass]) -> Decimal | None:
    """Return the price in US dollars of one GPU of the service per hour; None if it is unknown."""
    chosen = classes.get(service.spec.accelerator.gpu_class or "")
    return None if chosen is None else chosen.price_per_hour


def with_class(service: LLMService, classes: Mapping[str, AcceleratorClass]) -> LLMService:
    """Return the service with the values of its class in the fields that its spec does not set.

    Raises InvalidSpec if the class is neither defined by the administrator nor a known GPU, if
    accelerator.type differs from the type of the GPU, or if the resources of the class and of the
    spec do not fit together.
    """
    spec, name = service.spec, service.spec.accelerator.gpu_class
    if name is None:
        return service
    chosen = classes.get(name)
    gpu = name if chosen is None else chosen.gpu or name
    if is_known(gpu):
        maker = AcceleratorType.AMD if is_amd(gpu) else AcceleratorType.NVIDIA
        if spec.accelerator.type is not maker:
            raise InvalidSpec(
                f"is {spec.accelerator.type}, and {gpu} is no such GPU: set {maker}, or another "
                "class",
                "spec.accelerator.type",
            )
        if chosen is None:
            return service
    if chosen is None:
        known = f"choose from {', '.join(sorted(classes))}, " if classes else ""
        raise InvalidSpec(
            f"{name} is neither an accelerator class of this operator nor a known GPU: {known}"
            "name a GPU such as H100, or add the class to the chart value acceleratorClasses",
            "spec.accelerator.class",
        )
    try:
        resources = _resources(spec.resources, chosen.resources)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise InvalidSpec(
            f"together with those of the class {name}: {said}", "spec.resources"
        ) from error
    merged = {
        "accelerator": _accelerator(spec.accelerator, chosen),
        "template": _template(spec.template, chosen),
        "resources": resources,
    }
    return service.model_copy(update={"spec": spec.model_copy(update=merged)})


def _accelerator(own: Accelerator, chosen: AcceleratorClass) -> Accelerator:
    return own.model_copy(
        update={
            "gpu_class": chosen.gpu or own.gpu_class,
            "resource_name": own.resource_name or chosen.resource_name,
        }
    )


def _template(own: Template, chosen: AcceleratorClass) -> Template:
    further = tuple(each for each in chosen.tolerations if each not in own.tolerations)
    return own.model_copy(
        update={
            "node_selector": {**chosen.node_selector, **own.node_selector},
            "tolerations": own.tolerations + further,
        }
    )


def _resources(own: Resources, chosen: Resources) -> Resources:
    taken = {each.name for each in own.claims}
    return Resources(
        requests=_amounts(own.requests, chosen.requests),
        limits=_amounts(own.limits, chosen.limits),
        extended={**chosen.extended, **own.extended},
        claims=(*own.claims, *(each for each in chosen.claims if each.name not in taken)),
    )


def _amounts(own: ResourceAmounts | None, chosen: ResourceAmounts | None) -> ResourceAmounts | None:
    if own is None or chosen is None:
        return own or chosen
    return chosen.model_copy(update=own.model_dump(exclude_none=True))
