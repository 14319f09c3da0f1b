"""spec.accelerator and spec.engine: what the model runs on and how vLLM runs it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.extra_args import ExtraArg
from llmservice_operator.api.fields import Fields, Rule, matches

DEFAULT_GPU_RESOURCE = "nvidia.com/gpu"


class AcceleratorType(StrEnum):
    NVIDIA = "nvidia"
    CPU = "cpu"


class Accelerator(Fields):
    type: AcceleratorType = AcceleratorType.NVIDIA
    """What the model runs on: nvidia (GPUs) or cpu (for trying things out; slow)."""
    count: Annotated[int, Field(ge=1, le=64)] | None = None
    """GPUs of each replica; the model is split over them (tensor parallelism). Default: 1."""
    resource_name: (
        Annotated[
            str,
            Field(min_length=3, max_length=317),
            matches(
                "[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?",
                "must be DOMAIN/NAME as in a node's status.allocatable, such as nvidia.com/gpu",
            ),
        ]
        | None
    ) = None
    """Resource that the device plugin advertises, for MIG slices or renamed GPUs, such as
    nvidia.com/mig-3g.40gb. Default: nvidia.com/gpu."""

    rules: ClassVar = (
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
    def gpus(self) -> int:
        """GPUs of each replica."""
        return 0 if self.type is AcceleratorType.CPU else self.count or 1

    @property
    def gpu_resource(self) -> str:
        return self.resource_name or DEFAULT_GPU_RESOURCE


class Engine(Fields):
    image: (
        Annotated[
            str,
            Field(min_length=1, max_length=512),
            matches(
                "[A-Za-z0-9][A-Za-z0-9._:/@-]*",
                "must be an image reference, such as registry.example.com/llmservice/server:0.1.0",
            ),
        ]
        | None
    ) = None
    """Image of the model servers. Default: the operator's image for the accelerator at the time the
    LLMService is first seen; a later operator keeps it."""
    version: (
        Annotated[
            str,
            Field(min_length=1, max_length=32),
            matches("[0-9]+[.][0-9]+[.][0-9]+", "must be a vLLM version, such as 0.32.0"),
        ]
        | None
    ) = None
    """vLLM version in the image, which decides which flags there are. Without an image of your own,
    setting it to the version that the operator brings moves the service to the operator's present
    image. Default: the version that the service was first given."""
    max_model_len: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Longest request, prompt and answer together, in tokens. Default: what the model was made
    for."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """Number format of weights and activations. Default: auto, the format the weights are in."""
    extra_args: Annotated[
        tuple[ExtraArg, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Further vLLM flags, one --flag=value per item, by full name; a switch takes true or false.
    Only flags that the engine's version has and that are safe here are accepted."""
