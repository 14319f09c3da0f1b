"""Computes from a model's files whether the model fits on its GPUs. The functions have no side
effects.

config_fields  the numbers in config.json
states         the layers of a model that store a state of fixed size
model_shape    the fields of config.json that determine the memory of a model
kv_cache       bytes of the KV cache and of the states of one request
weights        bytes of a model's weights
verdict        comparison with the memory of a GPU, and changes that make the model fit

docs/planning.md derives the formulas.
"""

from llmservice_operator.fit.config_fields import UnknownShape
from llmservice_operator.fit.model_shape import ModelShape, read_shape
from llmservice_operator.fit.verdict import Draft, Plan, Verdict, plan_fit
from llmservice_operator.fit.weights import Checkpoint

__all__ = [
    "Checkpoint",
    "Draft",
    "ModelShape",
    "Plan",
    "UnknownShape",
    "Verdict",
    "plan_fit",
    "read_shape",
]
