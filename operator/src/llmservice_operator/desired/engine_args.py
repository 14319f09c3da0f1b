"""spec -> vLLM's command line: exec form, one --flag=value each, always in the same order."""

from __future__ import annotations

from llmservice_operator.api.spec import LLMService


def build_engine_args(service: LLMService) -> list[str]:
    """Return the engine's arguments.

    Raises InvalidSpec for an extra argument that the engine's version does not have.
    """
    raise NotImplementedError(service)
