"""spec -> objects: everything an LLMService means in the cluster, as plain manifests.

build_all is the whole desired state in one read. Nothing here looks at live objects but
resolve_pin and resolve_replicas, which read what a service was given before, and is_up_to_date,
which compares.
"""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.accelerator_class import with_class
from llmservice_operator.desired.autoscaler import Autoscaler, build_autoscaler
from llmservice_operator.desired.cache import build_cache_claim
from llmservice_operator.desired.comparison import is_up_to_date
from llmservice_operator.desired.deployment import build_deployment
from llmservice_operator.desired.kubernetes_service import build_kubernetes_service
from llmservice_operator.desired.manifest import is_owned_by
from llmservice_operator.desired.network_policy import build_network_policy
from llmservice_operator.desired.pin import EnginePin, resolve_pin
from llmservice_operator.desired.pod_disruption_budget import build_pod_disruption_budget
from llmservice_operator.desired.replicas import Replicas, resolve_replicas
from llmservice_operator.desired.rollout import RolloutDecision, decide_rollout
from llmservice_operator.settings import OperatorSettings

__all__ = [
    "Autoscaler",
    "EnginePin",
    "Manifest",
    "Replicas",
    "RolloutDecision",
    "build_all",
    "decide_rollout",
    "is_owned_by",
    "is_up_to_date",
    "resolve_pin",
    "resolve_replicas",
]


def build_all(
    service: LLMService,
    settings: OperatorSettings,
    pin: EnginePin,
    replicas: Replicas | None = None,
    autoscaler: Autoscaler | None = None,
) -> list[Manifest]:
    """Return every object of the service in the order to apply them.

    Without `replicas` and `autoscaler` those of a new service, in a cluster where its autoscaler
    can be had. Raises InvalidSpec when the engine cannot be run as the spec asks.
    """
    service = with_class(service, settings.accelerator_classes)
    if replicas is None:
        replicas = resolve_replicas(service, None)
    if autoscaler is None:
        autoscaler = Autoscaler.wished(service)
    manifests = [
        build_deployment(service, settings, pin, replicas),
        build_kubernetes_service(service),
        *build_autoscaler(service, settings, autoscaler),
        build_pod_disruption_budget(service),
        # Last: a claim that cannot become what is asked for must hold up nothing else.
        *build_cache_claim(service),
    ]
    if service.spec.network_policy.enabled:
        # First, so that no pod is ever reachable before it.
        manifests.insert(0, build_network_policy(service, settings))
    return manifests
