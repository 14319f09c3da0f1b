"""Computes what a model server would report about a simulated engine."""

from llmservice_operator.scaling.conditions import EngineLimits
from llmservice_operator.scaling.signals import Counters, Snapshot, StepSums
from scaling.engine import COUNTED, FINISHED, Fleet


def counters_of(fleet: Fleet, engine: int) -> Counters:
    """Return the counters of one engine so far. Every finished request counts as judged."""
    totals = [float(value) for value in fleet.totals[engine]]
    return Counters(
        **dict(zip(COUNTED, totals, strict=False)),
        judged=totals[FINISHED],
        prompt_lengths=tuple(fleet.prompt_lengths[engine].tolist()),
        answer_lengths=tuple(fleet.answer_lengths[engine].tolist()),
        steps=StepSums(tuple(fleet.moments[engine].tolist())),
    )


def snapshot_of(
    fleet: Fleet, engine: int, limits: EngineLimits, at: float, started: float
) -> Snapshot:
    """Return the report of one engine at the time `at`, if its process began at `started`."""
    return Snapshot(
        at,
        started,
        counters_of(fleet, engine),
        int(fleet.running[engine]),
        int(fleet.waiting[engine]),
        float(fleet.kv_used[engine]),
        limits.kv_capacity_tokens,
        limits.max_sequences,
        limits.max_step_tokens,
    )
