"""spec -> objects: everything an LLMService means in the cluster, as plain manifests.

build_all is the whole desired state in one read. Nothing here looks at live objects but
resolve_pin, which reads which engine a service was given, and is_up_to_date, which compares.
"""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.comparison import is_up_to_date
from llmservice_operator.desired.deployment import build_deployment
from llmservice_operator.desired.kubernetes_service import build_kubernetes_service
from llmservice_operator.desired.manifest import is_owned_by
from llmservice_operator.desired.pin import EnginePin, resolve_pin
from llmservice_operator.settings import OperatorSettings

__all__ = ["EnginePin", "Manifest", "build_all", "is_owned_by", "is_up_to_date", "resolve_pin"]


def build_all(service: LLMService, settings: OperatorSettings, pin: EnginePin) -> list[Manifest]:
    """Return every object of the service in the order to apply them.

    Raises InvalidSpec when the engine cannot be run as the spec asks.
    """
    return [
        build_deployment(service, settings, pin),
        build_kubernetes_service(service),
    ]
