"""Converts the learned state to a calibration and back. A calibration is small enough for a status.

The leader writes the calibration. The standby, and a metrics server that starts later, begin with
the calibration and therefore compute the same demand as the leader.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace

from llmservice_operator.api.calibration import Calibration
from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.cold_start import ColdStarts
from llmservice_operator.scaling.forecast import LoadHistory
from llmservice_operator.scaling.signals import Counters, StepSums
from llmservice_operator.scaling.step_model import StepModel, StepModelFit
from llmservice_operator.scaling.traffic import TrafficMemory

WORTH_WRITING = 0.05
"""Relative change of a learned number above which the new calibration is worth a write."""


PERIOD_SECONDS = 600.0
UNMET_PERIOD_SECONDS = 60.0
SLOTS_PER_WRITE = 6
"""Number of slots by which the history of the load grows between two writes: one hour."""


def calibration_of(state: ScalingState) -> Calibration | None:
    """Return the calibration of the state. None while the request mix is unknown."""
    mix = state.traffic.mix
    if mix is None:
        return None
    seen, history = state.traffic.counters, state.history
    return Calibration(
        step_seconds=state.fit.model.coefficients,
        capacity_factor=state.factor.value,
        cold_start_seconds=state.cold_starts.seconds,
        node_wait_seconds=state.cold_starts.waits,
        prompt_lengths=seen.prompt_lengths,
        answer_lengths=seen.answer_lengths,
        mean_prompt_tokens=seen.prompt_tokens_arrived / sum(seen.prompt_lengths),
        mean_answer_tokens=mix.answers.mean,
        computed_share=state.traffic.computed_share,
        kv_tokens_per_sequence=mix.kv_tokens_per_sequence,
        tokens_per_step=mix.tokens_per_step,
        load_history=b64encode(history.levels).decode() if history.levels else None,
        history_slot=history.slot if history.levels else None,
        unmet_demand=state.unmet_demand,
    )


def with_calibration(state: ScalingState, learned: Calibration) -> ScalingState:
    """Return the state with the calibration of another process in place of the learned values."""
    prompts = sum(learned.prompt_lengths)
    arrived = prompts * learned.mean_prompt_tokens
    answered = sum(learned.answer_lengths) * learned.mean_answer_tokens
    counters = Counters(
        arrivals=sum(learned.answer_lengths),
        generated_tokens=answered,
        prompt_tokens_arrived=arrived,
        prompt_tokens_computed=arrived * learned.computed_share,
        prompt_tokens_cached=arrived * (1 - learned.computed_share),
        prompt_lengths=learned.prompt_lengths,
        answer_lengths=learned.answer_lengths,
        answer_tokens=answered,
        steps=_one_sequence(learned.kv_tokens_per_sequence),
        decoded_tokens=learned.tokens_per_step,
    )
    return replace(
        state,
        fit=StepModelFit.after(
            StepModel(*learned.step_seconds), state.fit.units or state.fit.prior
        ),
        factor=replace(state.factor, value=learned.capacity_factor),
        cold_starts=ColdStarts(learned.cold_start_seconds, learned.node_wait_seconds),
        # The service is not new.
        traffic=TrafficMemory(counters, math.inf),
    )


def resumed(state: ScalingState, stored: Calibration) -> ScalingState:
    """Return the state of a new process that continues the work of an earlier one."""
    return replace(
        with_calibration(state, stored),
        known_at=-math.inf,
        unmet_demand=stored.unmet_demand,
        history=_history_of(stored),
    )


def _history_of(stored: Calibration) -> LoadHistory:
    if stored.load_history is None or stored.history_slot is None:
        return LoadHistory()
    try:
        return LoadHistory(b64decode(stored.load_history, validate=True), stored.history_slot)
    except ValueError:
        return LoadHistory()


def shortest_period(learned: Calibration) -> float:
    """Return the shortest time in seconds between two writes of a calibration.

    Learning changes it constantly, and the API server need not store every change. An unmet demand
    is stored early, because it is worth nothing after a few minutes.
    """
    return PERIOD_SECONDS if learned.unmet_demand is None else UNMET_PERIOD_SECONDS


def has_moved(now: Calibration, written: Calibration) -> bool:
    """Return whether a number that affects decisions has changed enough to be written, or the
    history of the load has grown enough.
    """
    if (now.history_slot is None) != (written.history_slot is None):
        return True
    if (now.history_slot or 0) - (written.history_slot or 0) >= SLOTS_PER_WRITE:
        return True
    pairs = zip(_deciding(now), _deciding(written), strict=True)
    return any(
        abs(mine - theirs) > WORTH_WRITING * max(abs(mine), abs(theirs)) for mine, theirs in pairs
    )


def _deciding(learned: Calibration) -> Iterator[float]:
    yield from learned.step_seconds
    yield learned.capacity_factor
    starts = ColdStarts(learned.cold_start_seconds, learned.node_wait_seconds)
    yield starts.estimate
    yield starts.estimate + starts.node_wait
    yield starts.longest_start
    yield learned.mean_prompt_tokens
    yield learned.mean_answer_tokens
    yield learned.computed_share
    yield learned.kv_tokens_per_sequence
    yield learned.tokens_per_step
    yield 0.0 if learned.unmet_demand is None else learned.unmet_demand.percent


def _one_sequence(kv_tokens: float) -> StepSums:
    """Return the step sums of one sequence with `kv_tokens` KV tokens. All other sums are zero."""
    moments = [0.0] * len(StepSums().moments)
    moments[2], moments[3] = 1.0, kv_tokens
    return StepSums(tuple(moments))
