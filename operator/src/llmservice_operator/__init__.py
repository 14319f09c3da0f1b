"""Kubernetes operator for LLMService: one resource in, a served language model out.

ARCHITECTURE.md says what each module is for; the layer contract in pyproject.toml says what it may
import.
"""

from importlib.metadata import version

__version__ = version("llmservice-operator")
