"""spec.accelerator and spec.engine: what the model runs on and how vLLM runs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule, matches

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


FLAGS_WITH_A_FIELD: Mapping[str, str] = {
    "--model": "model.uri",
    "--served-model-name": "model.name",
    "--revision": "model.revision",
    "--max-model-len": "engine.maxModelLen",
    "--dtype": "engine.dtype",
    "--tensor-parallel-size": "accelerator.count",
}
"""Engine flags that the compiler writes from a field of the spec."""

REFUSED_FLAGS = (
    "--allow-credentials",
    "--allowed-headers",
    "--allowed-local-media-path",
    "--allowed-media-domains",
    "--allowed-methods",
    "--allowed-origins",
    "--api-key",
    "--chat-template",
    "--code-revision",
    "--config",
    "--disable-fastapi-docs",
    "--download-dir",
    "--enable-tokenizer-info-endpoint",
    "--headless",
    "--hf-config-path",
    "--hf-overrides",
    "--hf-token",
    "--host",
    "--middleware",
    "--port",
    "--root-path",
    "--ssl-ca-certs",
    "--ssl-cert-reqs",
    "--ssl-certfile",
    "--ssl-keyfile",
    "--tokenizer",
    "--tool-parser-plugin",
    "--tool-server",
    "--trust-remote-code",
    "--uds",
    "--worker-cls",
    "--worker-extension-cls",
)
"""Engine flags that belong to the operator or could run foreign code or open files and ports.

This list is for an early and clear answer; what keeps pods safe is that desired/ accepts only
flags it knows.
"""


def _none_of(flags: Iterable[str], message: str) -> ValueRule:
    pattern = f"({'|'.join(flags)})="
    return ValueRule(
        cel=f"!self.matches('^{pattern}')",
        message=message,
        holds=lambda arg: re.match(pattern, arg) is None,
    )


_FIELDS_OF_FLAGS = ", ".join(f"{field} for {flag}" for flag, field in FLAGS_WITH_A_FIELD.items())

ExtraArg = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    matches(
        "--[a-z][a-z0-9-]*=.+",
        "must be --flag=value, the flag's full name in lower case with dashes, such as "
        "--max-num-seqs=64; a switch is --enforce-eager=true",
    ),
    _none_of(
        FLAGS_WITH_A_FIELD, f"is a flag with a field of its own; set that: {_FIELDS_OF_FLAGS}"
    ),
    _none_of(
        REFUSED_FLAGS,
        "is set by the operator itself or unsafe in a shared cluster: remove it",
    ),
]


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
