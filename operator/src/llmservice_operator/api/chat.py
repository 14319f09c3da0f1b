"""Chat template, tool calls and reasoning of the model server."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule, matches
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.references import ConfigMapKey

ParserName = Annotated[
    str,
    Field(min_length=1, max_length=64),
    matches("[a-z0-9][a-z0-9_-]*", "must be a parser of the engine, such as hermes"),
]


class ChatTemplate(Fields):
    inline: (
        Annotated[
            str,
            Field(min_length=1, max_length=65_536),
            ValueRule(
                cel="self.contains('{')",
                message="must be a Jinja template with {{ }} or {% %} in it: to use a file, put "
                "it into a ConfigMap and set configMapKeyRef",
                holds=lambda text: "{" in text,
            ),
        ]
        | None
    ) = None
    """Jinja template. A change replaces the pods."""
    config_map_key_ref: ConfigMapKey | None = None
    """Key of a ConfigMap that contains the template. A model server reads the template only when it
    starts. To roll out a new template, refer to another key or ConfigMap."""

    rules: ClassVar = (
        Rule(
            "inline",
            cel="has(self.inline) != has(self.configMapKeyRef)",
            message="is an alternative to configMapKeyRef: set exactly one of the two",
            holds=lambda self: (self.inline is None) != (self.config_map_key_ref is None),
        ),
    )


class ToolCalling(Fields):
    parser: Annotated[ParserName, EngineFlag("--tool-call-parser")]
    """Name of the engine's parser for the tool calls that the model writes, such as hermes,
    llama3_json or mistral."""
