"""The step model and the report of an idle replica, for tests of the router."""

from llmservice_operator.scaling.signals import Counters, Snapshot
from llmservice_operator.scaling.step_model import StepModel

MODEL = StepModel(fixed=0.01, prefill=50e-6, sequence=20e-6, kv=50e-9)
CACHE_TOKENS = 400_000.0
REPORT = Snapshot(
    at=0.0,
    started=0.0,
    counters=Counters(),
    running=0,
    waiting=0,
    kv_tokens=0.0,
    kv_capacity_tokens=CACHE_TOKENS,
    max_sequences=256,
    max_step_tokens=2048,
)
