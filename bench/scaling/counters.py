"""What a model server would report of a simulated engine."""

from llmservice_operator.scaling.signals import Counters, StepSums
from scaling.engine import (
    ANSWER_TOKENS,
    ARRIVALS,
    CACHED,
    COMPUTED,
    FINISHED,
    GENERATED,
    ITL_MET,
    PROMPT_ARRIVED,
    SLO_MET,
    TTFT_MET,
    Fleet,
)


def counters_of(fleet: Fleet, engine: int) -> Counters:
    """Return what one engine has done so far."""
    totals = [float(value) for value in fleet.totals[engine]]
    return Counters(
        arrivals=totals[ARRIVALS],
        prompt_tokens_arrived=totals[PROMPT_ARRIVED],
        prompt_tokens_computed=totals[COMPUTED],
        prompt_tokens_cached=totals[CACHED],
        generated_tokens=totals[GENERATED],
        finished=totals[FINISHED],
        judged=totals[FINISHED],
        ttft_met=totals[TTFT_MET],
        itl_met=totals[ITL_MET],
        slo_met=totals[SLO_MET],
        prompt_lengths=tuple(fleet.prompt_lengths[engine].tolist()),
        answer_lengths=tuple(fleet.answer_lengths[engine].tolist()),
        answer_tokens=totals[ANSWER_TOKENS],
        steps=StepSums(tuple(fleet.moments[engine].tolist())),
    )
