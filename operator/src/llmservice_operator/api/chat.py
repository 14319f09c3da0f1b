"""How the model server reads chats and answers: template, tool calls and reasoning."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, ValueRule, matches
from llmservice_operator.api.flags import EngineFlag
from llmservice_operator.api.references import ConfigMapKey

ParserName = Annotated[
    str,
    Field(min_length=1, max_length=64),
    matches("[a-z0-9][a-z0-9_-]*", "must be a parser that the engine knows, such as hermes"),
]


class ChatTemplate(Fields):
    inline: (
        Annotated[
            str,
            Field(min_length=1, max_length=65_536),
            ValueRule(
                cel="self.contains('{')",
                message="must be a Jinja template, with {{ }} or {% %} in it: to name a file, put "
                "it into a ConfigMap and set configMapKeyRef",
                holds=lambda text: "{" in text,
            ),
        ]
        | None
    ) = None
    """The Jinja template itself. A change of it replaces the pods."""
    config_map_key_ref: ConfigMapKey | None = None
    """A key of a ConfigMap that holds the template. It is read when a pod starts: to replace the
    pods with a change, give it another key or ConfigMap."""

    rules: ClassVar = (
        Rule(
            "inline",
            cel="has(self.inline) != has(self.configMapKeyRef)",
            message="must be set, or configMapKeyRef instead: keep one of the two",
            holds=lambda self: (self.inline is None) != (self.config_map_key_ref is None),
        ),
    )


class ToolCalling(Fields):
    parser: Annotated[ParserName, EngineFlag("--tool-call-parser")]
    """How the model writes the calls of tools, by the engine's own name, such as hermes,
    llama3_json or mistral."""
