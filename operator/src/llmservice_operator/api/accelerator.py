"""spec.accelerator and spec.engine.parallelism: what the model runs on, and how it is split."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, matches
from llmservice_operator.api.flags import EngineFlag

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"

MAX_GPUS = 64
"""GPUs of one replica, which runs on one node."""


ClassName = Annotated[
    str,
    Field(min_length=1, max_length=63),
    matches(
        "[A-Za-z0-9][A-Za-z0-9._-]*",
        "must be the name of an accelerator class, or of a GPU as the node label "
        "nvidia.com/gpu.product holds it, such as H100",
    ),
]


GpuResource = Annotated[
    str,
    Field(min_length=3, max_length=317),
    matches(
        "[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"
        "[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?",
        "must be DOMAIN/NAME as in a node's status.allocatable, such as nvidia.com/gpu",
    ),
]


class AcceleratorType(StrEnum):
    # Lower case, unlike the other words of this API: Kubernetes spells hardware so, as in the
    # resources nvidia.com/gpu and cpu.
    NVIDIA = "nvidia"
    CPU = "cpu"


class Accelerator(Fields):
    type: AcceleratorType = AcceleratorType.NVIDIA
    """What the model runs on: nvidia (GPUs) or cpu (for trying things out; slow)."""
    count: Annotated[int, Field(ge=1, le=MAX_GPUS)] | None = None
    """GPUs of each replica; the model is split over them. Default: what engine.parallelism
    needs, or 1."""
    resource_name: GpuResource | None = None
    """Resource that the device plugin advertises, for MIG slices or renamed GPUs, such as
    nvidia.com/mig-3g.40gb. Default: nvidia.com/gpu."""

    gpu_class: Annotated[ClassName | None, Field(alias="class")] = None
    """Kind of the GPUs: a class that the operator's administrator has defined, which brings nodes,
    tolerations, resource name and resources as far as the spec does not set them; or a GPU such as
    H100 or the node label nvidia.com/gpu.product, which chooses no node. With a known GPU and an
    ITL in the SLO a step is made no longer than that ITL, where batching.maxNumBatchedTokens is not
    set and the model's name says its size. Default: unknown."""

    rules: ClassVar = (
        Rule(
            "class",
            cel="self.type != 'cpu' || !has(self.class)",
            message="belongs to accelerator.type nvidia only: remove it or choose nvidia",
            holds=lambda self: self.type != AcceleratorType.CPU or self.gpu_class is None,
        ),
        Rule(
            "count",
            cel="self.type != 'cpu' || !has(self.count)",
            message="belongs to accelerator.type nvidia only: remove it or choose nvidia",
            holds=lambda self: self.type != AcceleratorType.CPU or self.count is None,
        ),
        Rule(
            "resourceName",
            cel="self.type != 'cpu' || !has(self.resourceName)",
            message="belongs to accelerator.type nvidia only: remove it or choose nvidia",
            holds=lambda self: self.type != AcceleratorType.CPU or self.resource_name is None,
        ),
    )

    @property
    def gpu_resource(self) -> str:
        return self.resource_name or DEFAULT_GPU_RESOURCE


class Parallelism(Fields):
    tensor: (
        Annotated[
            int,
            Field(ge=1, le=MAX_GPUS),
            EngineFlag("--tensor-parallel-size", is_computed=True),
        ]
        | None
    ) = None
    """GPUs that each layer is split over; the fastest way when they are linked well. Default: those
    of accelerator.count that pipeline and data leave, or 1."""
    pipeline: Annotated[int, Field(ge=1, le=MAX_GPUS), EngineFlag("--pipeline-parallel-size")] = 1
    """Groups of layers, each on GPUs of its own; for GPUs that are linked badly."""
    data: Annotated[int, Field(ge=1, le=MAX_GPUS), EngineFlag("--data-parallel-size")] = 1
    """Copies of the model inside one replica, which share its queue; of use for mixture-of-experts
    models with expert: true. For others set spec.replicas."""
    expert: Annotated[bool, EngineFlag("--enable-expert-parallel")] = False
    """Whether a mixture-of-experts model puts whole experts on GPUs instead of splitting each."""

    rules: ClassVar = (
        Rule(
            "tensor",
            cel=f"(has(self.tensor) ? self.tensor : 1) * self.pipeline * self.data <= {MAX_GPUS}",
            message=f"makes more than {MAX_GPUS} GPUs with pipeline and data: lower one of them, a "
            "replica runs on one node",
            holds=lambda self: (self.tensor or 1) * self.pipeline * self.data <= MAX_GPUS,
        ),
    )

    def fits(self, count: int) -> bool:
        """Return whether `count` GPUs are wholly used."""
        others = self.pipeline * self.data
        return count == self.tensor * others if self.tensor else count % others == 0
