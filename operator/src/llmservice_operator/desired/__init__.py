"""What an LLMService asks for: the parts that its children are made of, as plain values.

A few functions also read live objects: resolve_pin and resolve_replicas find what the service was
given before, decide_rollout sees how its rollout goes on, the provider of its autoscaler is chosen
by what scales it now, and is_up_to_date compares an object with its manifest.
"""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.desired.accelerator_class import with_class
from llmservice_operator.desired.autoscaler import Autoscaler
from llmservice_operator.desired.comparison import is_up_to_date
from llmservice_operator.desired.manifest import is_owned_by
from llmservice_operator.desired.pin import EnginePin, resolve_pin
from llmservice_operator.desired.replicas import Replicas, resolve_replicas
from llmservice_operator.desired.rollout import RolloutDecision, decide_rollout

__all__ = [
    "Autoscaler",
    "EnginePin",
    "Manifest",
    "Replicas",
    "RolloutDecision",
    "decide_rollout",
    "is_owned_by",
    "is_up_to_date",
    "resolve_pin",
    "resolve_replicas",
    "with_class",
]
