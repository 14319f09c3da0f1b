"""Kubernetes operator for LLMService: a user applies one resource and gets a served language
model.

ARCHITECTURE.md describes the modules. The layer contract in pyproject.toml says what each may
import.
"""

from importlib.metadata import version

__version__ = version("llmservice-operator")
