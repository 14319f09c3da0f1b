"""A Kubernetes operator that serves a language model for each LLMService.

ARCHITECTURE.md describes the modules. The layer contract in pyproject.toml lists the imports that
each module may use.
"""

from importlib.metadata import version

__version__ = version("llmservice-operator")
