"""spec.accelerator and spec.engine.parallelism: the hardware and the split of the model."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, matches
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.references import ObjectName

MAX_GPUS = 64
"""Maximum number of GPUs of one replica. A replica runs on one node."""


ClassName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches(
        "[A-Za-z0-9][A-Za-z0-9._-]*",
        "must be an accelerator class, or a GPU as in the node label nvidia.com/gpu.product, "
        "such as H100",
    ),
]


RESOURCE_PATTERN = (
    "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
    "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)
"""Pattern of a resource name that a device plugin advertises."""

GpuResource = Annotated[
    str,
    Field(min_length=3, max_length=317),
    matches(
        RESOURCE_PATTERN,
        "must have the form DOMAIN/NAME, as in a node's status.allocatable, such as nvidia.com/gpu",
    ),
]


class AcceleratorType(StrEnum):
    # Unlike the other enumerations of this API, the values are in lower case, because Kubernetes
    # writes hardware names in lower case: for example the resources nvidia.com/gpu and cpu.
    NVIDIA = "nvidia"
    AMD = "amd"
    CPU = "cpu"


GPU_RESOURCES: Mapping[AcceleratorType, str] = {
    AcceleratorType.NVIDIA: "nvidia.com/gpu",
    AcceleratorType.AMD: "amd.com/gpu",
}
"""Resource names of whole GPUs, by the type of the accelerator."""

REQUIRES_GPUS = "requires GPUs: remove it, or set accelerator.type to nvidia or amd"


class Accelerator(Fields):
    type: AcceleratorType = AcceleratorType.NVIDIA
    """Hardware that the model runs on: nvidia or amd (GPUs), or cpu (slow, for trials). Type amd
    has not been tested on hardware, and requires engine.image or the chart value
    server.amdImage."""
    count: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None
    """Number of GPUs of each replica. The model is split across these GPUs. Default: the product of
    tensor, pipeline and data in engine.parallelism, or 1 without engine.parallelism."""
    resource_name: GpuResource | None = None
    """Resource name that the device plugin advertises, for MIG slices or renamed GPUs, such as
    nvidia.com/mig-3g.40gb. Default: the resource name of the accelerator class, otherwise
    nvidia.com/gpu or, for type amd, amd.com/gpu."""
    resource_claim_template_name: ObjectName | None = None
    """ResourceClaimTemplate in the LLMService's namespace that allocates `count` GPUs to each
    replica (dynamic resource allocation; requires Kubernetes 1.34). The pods then request no
    resource such as nvidia.com/gpu."""

    gpu_class: Annotated[ClassName | None, Field(alias="class")] = None
    """Type of the GPUs: an accelerator class that the administrator has defined, a GPU that the
    operator knows, such as H100, or the value of the node label nvidia.com/gpu.product or
    amd.com/gpu.product-name for such a GPU. A class supplies the node selector, tolerations,
    resource name and resources that the spec does not set. A GPU name alone selects no node. The
    operator limits the number of tokens in an engine step, so that no step takes longer than the
    ITL limit, on four conditions: the operator knows the GPU, the model's name contains the
    model's size, the SLO limits the ITL, and engine.batching sets neither maxNumBatchedTokens nor
    chunkedPrefill: false. Default: unknown."""

    rules: ClassVar = (
        Rule(
            "class",
            cel="self.type != 'cpu' || !has(self.class)",
            message=REQUIRES_GPUS,
            holds=lambda self: self.type != AcceleratorType.CPU or self.gpu_class is None,
        ),
        Rule(
            "count",
            cel="self.type != 'cpu' || !has(self.count)",
            message=REQUIRES_GPUS,
            holds=lambda self: self.type != AcceleratorType.CPU or self.count is None,
        ),
        Rule(
            "resourceName",
            cel="self.type != 'cpu' || !has(self.resourceName)",
            message=REQUIRES_GPUS,
            holds=lambda self: self.type != AcceleratorType.CPU or self.resource_name is None,
        ),
        Rule(
            "resourceClaimTemplateName",
            cel="self.type != 'cpu' || !has(self.resourceClaimTemplateName)",
            message=REQUIRES_GPUS,
            holds=lambda self: (
                self.type != AcceleratorType.CPU or self.resource_claim_template_name is None
            ),
        ),
        Rule(
            "resourceName",
            cel="!has(self.resourceName) || !has(self.resourceClaimTemplateName)",
            message="has no effect with resourceClaimTemplateName: keep one of the two",
            holds=lambda self: (
                self.resource_name is None or self.resource_claim_template_name is None
            ),
        ),
    )

    @property
    def gpu_resource(self) -> str:
        return self.resource_name or self.whole_gpu_resource

    @property
    def whole_gpu_resource(self) -> str:
        """Resource name of whole GPUs; also the key of the usual taint of their nodes."""
        return GPU_RESOURCES.get(self.type, GPU_RESOURCES[AcceleratorType.NVIDIA])


class Parallelism(Fields):
    tensor: (
        Annotated[
            int,
            Field(ge=1, le=MAX_GPUS),
            EngineFlag("--tensor-parallel-size", is_computed=True),
        ]
        | None
    ) = None
    """Number of GPUs that each layer is split across. This split is the fastest on GPUs with fast
    links. Default: accelerator.count divided by pipeline and by data, or 1 if count is unset."""
    pipeline: Annotated[int, Field(ge=1, le=MAX_GPUS), EngineFlag("--pipeline-parallel-size")] = 1
    """Number of groups that the layers are divided into. Each group runs on separate GPUs. This
    split suits GPUs with slow links."""
    data: Annotated[int, Field(ge=1, le=MAX_GPUS), EngineFlag("--data-parallel-size")] = 1
    """Number of copies of the model inside one replica. The replica distributes its requests among
    the copies. Copies are useful for mixture-of-experts models with expert: true; for other models,
    set spec.replicas instead."""
    expert: Annotated[bool, EngineFlag("--enable-expert-parallel")] = False
    """Whether each GPU stores whole experts of a mixture-of-experts model instead of a slice of
    every expert."""

    rules: ClassVar = (
        Rule(
            "tensor",
            cel=f"(has(self.tensor) ? self.tensor : 1) * self.pipeline * self.data <= {MAX_GPUS}",
            message=f"must be at most {MAX_GPUS} when multiplied by pipeline and data, because a "
            "replica runs on one node: lower one of them",
            holds=lambda self: (self.tensor or 1) * self.pipeline * self.data <= MAX_GPUS,
        ),
    )

    def fits(self, count: int) -> bool:
        """Return whether the split uses all of `count` GPUs."""
        others = self.pipeline * self.data
        return count == self.tensor * others if self.tensor else count % others == 0
