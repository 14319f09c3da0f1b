"""spec.engine: the settings of vLLM."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmservice_operator.api.engine_fields import EngineFields
from llmservice_operator.api.environment import EnvironmentVariable
from llmservice_operator.api.extra_args import ExtraArg
from llmservice_operator.api.fields import ATOMIC, keyed_by


class Engine(EngineFields):
    extra_args: Annotated[
        tuple[ExtraArg, ...],
        Field(max_length=32, json_schema_extra=ATOMIC),
    ] = ()
    """Additional vLLM flags, one --flag=value per item. Each item needs the full name of the flag.
    The value of a switch is true or false, such as --flag=true. The engine's version must have the
    flag, and the flag must be safe in a shared cluster."""
    env: Annotated[
        tuple[EnvironmentVariable, ...],
        Field(
            max_length=64,
            json_schema_extra=keyed_by("name"),
        ),
    ] = ()
    """Additional environment variables of the model servers, such as settings of vLLM, NCCL or a
    proxy."""
