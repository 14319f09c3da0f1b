"""What the product's formula promises that one engine sustains, to be held against the truth."""

import numpy as np

from llmservice_operator.scaling.capacity import RequestMix, sustainable_rate
from llmservice_operator.scaling.lengths import lengths_of
from scaling.calibration import measure
from scaling.engine import ANSWER_TOKENS, COMPUTED, PROMPT_ARRIVED
from scaling.hardware import SLO, Hardware
from scaling.workloads import Workload

SEEN_SECONDS = 3000.0


def seen_mix(workload: Workload, rate: float) -> RequestMix:
    """What a replica tells of the workload's requests when it serves so many a second.

    Raises RuntimeError when no request came.
    """
    traffic = workload.make(np.random.default_rng(5))
    seen = measure(workload, traffic, rate, SEEN_SECONDS).fleet
    totals, moments = seen.totals[0], seen.moments[0]
    prompts = lengths_of(tuple(seen.prompt_lengths[0]), float(totals[PROMPT_ARRIVED]))
    answers = lengths_of(tuple(seen.answer_lengths[0]), float(totals[ANSWER_TOKENS]))
    if prompts is None or answers is None:
        raise RuntimeError(f"no request in {SEEN_SECONDS:.0f} s")
    computed = float(totals[COMPUTED] / totals[PROMPT_ARRIVED])
    return RequestMix(prompts.times(computed), answers, float(moments[3] / moments[2]))


def promised_rate(hardware: Hardware, mix: RequestMix) -> float:
    """Requests per second by the product's formula."""
    return sustainable_rate(mix, hardware.step, hardware.limits, SLO)


def mean_rate(hardware: Hardware, mix: RequestMix) -> float:
    """Requests per second at which the MEAN inter-token latency meets the SLO."""
    step = hardware.step
    work = mix.prompt_work(step) + (mix.answers.mean - 1) * mix.token_work(step)
    return (1 - step.fixed / (SLO.itl_seconds or np.inf)) / work
