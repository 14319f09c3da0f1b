"""The desired state of an LLMService: the parts of its children, as plain values.

A few functions also read live objects. For example, plan_provider reads the present autoscaler, and
is_up_to_date compares an object with its manifest.
"""

from __future__ import annotations

from llmservice_operator.api import Manifest
from llmservice_operator.desired.accelerator_class import with_class
from llmservice_operator.desired.autoscaler import Autoscaler
from llmservice_operator.desired.comparison import is_up_to_date
from llmservice_operator.desired.manifest import (
    is_left_to,
    is_owned_by,
    may_change,
    was_made_by_operator,
)
from llmservice_operator.desired.node_size import check_fits_a_node
from llmservice_operator.desired.server_defaults import with_defaults

__all__ = [
    "Autoscaler",
    "Manifest",
    "check_fits_a_node",
    "is_left_to",
    "is_owned_by",
    "is_up_to_date",
    "may_change",
    "was_made_by_operator",
    "with_class",
    "with_defaults",
]
