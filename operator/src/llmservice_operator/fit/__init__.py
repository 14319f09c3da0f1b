"""Whether a model fits on its GPUs, from the model's own files: values in, values out.

model_shape  the part of a config.json that decides on memory
kv_cache     bytes of the KV cache of one request
weights      bytes of the weights on one GPU
verdict      both against the memory of a GPU, and what to change

docs/planning.md derives the formulas.
"""

from llmservice_operator.fit.model_shape import ModelShape, UnknownShape, read_shape
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
