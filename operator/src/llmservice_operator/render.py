"""`llmservice-operator render`: what an LLMService becomes, printed without a cluster."""

from __future__ import annotations

from llmservice_operator.settings import OperatorSettings


def render_file(text: str, settings: OperatorSettings) -> str:
    """Return the objects of every LLMService in the YAML `text`, as YAML documents.

    Raises InvalidSpec with the field and the remedy.
    """
    raise NotImplementedError(text, settings)
