"""The LLMService API: fields and rules of the spec, status, conditions and the generated CRD.

The CRD, validation and the field documentation all come from this package.
"""

from typing import Any

Manifest = dict[str, Any]
"""A Kubernetes object as the API server accepts or returns it."""

GROUP = "llmservice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMService"
PLURAL = "llmservices"
SINGULAR = "llmservice"
SHORT_NAMES = ("llmsvc", "llm")
