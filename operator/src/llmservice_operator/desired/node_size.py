"""Refuses a replica that no node can run."""

from __future__ import annotations

from collections.abc import Mapping

from llmservice_operator.api.accelerator_class import AcceleratorClass
from llmservice_operator.api.spec import LLMService
from llmservice_operator.errors import InvalidSpec

_WHOLE_GPU = "/gpu"
"""Suffix of a resource name that counts whole GPUs, such as nvidia.com/gpu. Other resources count
slices or shares, so a node can have more of them than gpusPerNode."""


def check_fits_a_node(
    service: LLMService, classes: Mapping[str, AcceleratorClass], gpus_per_node: int
) -> None:
    """Raise InvalidSpec for a replica with more GPUs than a node has.

    The scheduler would never find a node for such a replica. `gpus_per_node` is a number of whole
    GPUs. A limit in the accelerator class counts units of the resource of the class, which may be
    slices of a GPU.
    """
    accelerator = service.spec.accelerator
    name = accelerator.gpu_class
    chosen = None if name is None else classes.get(name)
    most, source = gpus_per_node, "gpusPerNode"
    if chosen is not None and chosen.gpus_per_node is not None:
        most, source = chosen.gpus_per_node, f"acceleratorClasses.{name}.gpusPerNode"
    else:
        resource = accelerator.resource_name or (None if chosen is None else chosen.resource_name)
        if resource is not None and not resource.endswith(_WHOLE_GPU):
            return
    if service.spec.gpus > most:
        raise InvalidSpec(
            f"makes a replica of {service.spec.gpus} GPUs, and a replica runs on one node, which "
            f"has at most {most}: use at most {most}, with a smaller or quantized model if they "
            f"are too few, or raise the chart value {source} if your nodes have more",
            "spec.engine.parallelism" if accelerator.count is None else "spec.accelerator.count",
        )
