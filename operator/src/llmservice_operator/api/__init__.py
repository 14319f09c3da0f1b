"""The LLMService API: fields and rules (spec), status, conditions and the generated CRD.

This package is the one source of the CRD, of validation and of the field documentation.
"""

from typing import Any

Manifest = dict[str, Any]
"""One Kubernetes object as the API server takes or returns it."""

GROUP = "llmservice.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMService"
PLURAL = "llmservices"
SINGULAR = "llmservice"
SHORT_NAMES = ("llmsvc", "llm")
