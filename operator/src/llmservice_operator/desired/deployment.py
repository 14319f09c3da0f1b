"""The Deployment that runs a service's model servers."""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.pin import EnginePin
from llmservice_operator.settings import OperatorSettings


def build_deployment(service: LLMService, settings: OperatorSettings, pin: EnginePin) -> Manifest:
    """Build the Deployment that runs the service's model servers."""
    raise NotImplementedError(service, settings, pin)
