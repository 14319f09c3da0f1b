"""The rules of an LLMService that has no replicas while nobody uses it."""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.fields import Rule
from llmservice_operator.api.router import RouterMode

RULES_OF_AN_IDLE_SERVICE: Final = (
    Rule(
        "autoscaling.minReplicas",
        cel="!has(self.autoscaling) || self.autoscaling.minReplicas > 0 || "
        "!has(self.router) || !has(self.router.enabled) || self.router.enabled",
        message="of 0 requires the router, in which requests wait for a replica: remove "
        "router.enabled: false, or set minReplicas to 1 or more",
        holds=lambda spec: (
            spec.least_allowed_replicas > 0 or spec.router_settings.enabled is not False
        ),
    ),
    Rule(
        "router.mode",
        cel="!has(self.autoscaling) || self.autoscaling.minReplicas > 0 || "
        "!has(self.router) || self.router.mode != 'InferencePool'",
        message="must be Proxy with autoscaling.minReplicas: 0, because a Gateway refuses requests "
        "while there is no replica: change it, or set minReplicas to 1",
        holds=lambda spec: (
            spec.least_allowed_replicas > 0
            or spec.router_settings.mode is not RouterMode.INFERENCE_POOL
        ),
    ),
    Rule(
        "router.holdTimeoutSeconds",
        cel="!has(self.autoscaling) || self.autoscaling.minReplicas > 0 || "
        "!has(self.router) || self.router.holdTimeoutSeconds > 0",
        message="must be greater than 0 with autoscaling.minReplicas: 0, because the request "
        "that wakes the service waits for a replica: raise it, or set minReplicas to 1",
        holds=lambda spec: (
            spec.least_allowed_replicas > 0 or spec.router_settings.hold_timeout_seconds > 0
        ),
    ),
)
"""Rules of the spec. Requests wait in the router while such a service has no replicas."""
