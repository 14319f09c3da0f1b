"""spec.engine: how vLLM runs the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.engine_fields import EngineFields
from llmservice_operator.api.environment import EnvironmentVariable
from llmservice_operator.api.extra_args import ExtraArg


class Engine(EngineFields):
    extra_args: Annotated[
        tuple[ExtraArg, ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Further vLLM flags, one --flag=value per item, by full name; a switch takes true or false.
    Only flags that the engine's version has and that are safe here are accepted."""
    env: Annotated[
        tuple[EnvironmentVariable, ...],
        Field(
            max_length=64,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
            },
        ),
    ] = ()
    """Further environment variables of the model servers, such as those of vLLM, NCCL or a
    proxy."""
