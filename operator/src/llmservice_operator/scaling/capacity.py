"""The request rate at which one replica still meets its SLO: 100 % of its effective utilization.

`sustainable_rate` returns the highest rate at which the misses that the load causes stay within the
objective. A limit that no replica attains is left out gradually (docs/capacity.md).
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from llmservice_operator.scaling.conditions import (
    EngineLimits,
    RequestMix,
    ServiceLevelObjective,
)
from llmservice_operator.scaling.misses import Engine
from llmservice_operator.scaling.step_model import StepModel

BISECTIONS = 24

REACH, REACH_OF_ITL = 1.1, 1.25
"""Ratio of a limit to the latency on an idle replica, at and above which the limit applies in full.
Below this ratio, nearly any other request breaks the limit, so the limit is gradually left out. The
ITL has a greater one, because the capacity falls more steeply near its limit."""

HOPELESS = 0.8
"""Ratio of a limit to the latency on an idle replica, at and below which the limit is left out."""

UNREACHABLE = 3.0
"""Multiple of the latency on an idle replica to which a request is held whose limit no replica
attains."""

MOVED, MOVED_SHARE = 0.01, 0.003
"""Relative change of a length or of a coefficient, and absolute change of the share of a length, up
to which a capacity stays valid. Both are far below the accuracy of what is learned."""

LEAST_SHARE = 0.05
"""Share of the throughput capacity below which no SLO lowers the capacity."""


def sustainable_rate(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> float:
    """Return the requests per second that one replica serves while its SLO holds.

    A limit that an idle replica hardly attains, or does not attain, is raised for the requests
    concerned, because more replicas do not help them. An SLO lowers the result at most to
    LEAST_SHARE of the rate without limits of the latency.
    """
    idle, itl = idle_itl(mix, model), slo.itl_seconds
    if itl is None or itl >= REACH_OF_ITL * idle:
        return _bounded_rate(mix, model, limits, slo)
    hardly, not_at_all = (
        _bounded_rate(mix, model, limits, replace(slo, itl_seconds=multiple * idle))
        for multiple in (REACH_OF_ITL, UNREACHABLE)
    )
    # Between the two, the logarithm of the rate is linear in the limit, so that no small change of
    # the limit changes the rate much.
    share = _unreached(itl, idle, REACH_OF_ITL)
    return math.pow(hardly, 1 - share) * math.pow(not_at_all, share)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The sustainable rate, and the conditions for which it was computed.

    It takes most of the time of a round, so it is computed only when the conditions have moved.
    """

    mix: RequestMix
    model: StepModel
    limits: EngineLimits
    slo: ServiceLevelObjective
    rate: float
    """Requests per second that one replica sustains."""
    unrepairable: float
    """Share of the requests that miss the SLO on an idle replica."""
    engine: Engine

    @classmethod
    def of(
        cls,
        mix: RequestMix,
        model: StepModel,
        limits: EngineLimits,
        slo: ServiceLevelObjective,
        known: "Capacity | None" = None,
    ) -> "Capacity":
        """Return the capacity: `known` if it was computed for about the same conditions."""
        if known is not None and known._is_for(mix, model, limits, slo):
            return known
        rate = sustainable_rate(mix, model, limits, slo)
        engine = Engine.of(mix, model, limits, slo)
        return cls(mix, model, limits, slo, rate, engine.misses(0.0).share, engine)

    def rate_of(self, mix: RequestMix, model: StepModel) -> float:
        """Return the rate for conditions that have moved a little since.

        The work of a request explains nearly all of such a difference.
        """
        return self.rate * self.mix.work(self.model) / mix.work(model)

    def missed(self, utilization: float) -> float:
        """Return the share of the requests that miss the SLO at this share of the rate."""
        return self.engine.misses(utilization * self.rate / self.limits.engines).share

    def _is_for(
        self,
        mix: RequestMix,
        model: StepModel,
        limits: EngineLimits,
        slo: ServiceLevelObjective,
    ) -> bool:
        return (
            (self.limits, self.slo) == (limits, slo)
            and _are_close(self.model.coefficients, model.coefficients)
            and _are_close(
                (self.mix.kv_tokens_per_sequence, self.mix.tokens_per_step),
                (mix.kv_tokens_per_sequence, mix.tokens_per_step),
            )
            and self.mix.prompts.is_close_to(mix.prompts, MOVED, MOVED_SHARE)
            and self.mix.answers.is_close_to(mix.answers, MOVED, MOVED_SHARE)
        )


def _are_close(ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    return all(map(partial(math.isclose, rel_tol=MOVED), ours, theirs))


def idle_itl(mix: RequestMix, model: StepModel) -> float:
    """Return the ITL of a request on an idle replica, in seconds."""
    steps = mix.in_steps()
    return (model.fixed + steps.token_work(model)) / mix.tokens_per_step


def idle_ttft(tokens: float, model: StepModel, limits: EngineLimits) -> float:
    """Return the TTFT of a prompt with so many tokens on an idle replica, in seconds."""
    steps = 0.5 + max(1.0, tokens / max(limits.max_step_tokens, 1))
    return steps * model.fixed + tokens * model.prefill


def _bounded_rate(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> float:
    ceiling = 1 / mix.work(model)
    rate = _rate(
        Engine.of(mix, model, limits, slo, _raised_limits(mix, model, limits, slo)), ceiling
    )
    if rate < LEAST_SHARE * ceiling:
        unlimited = replace(slo, ttft_seconds=None, itl_seconds=None)
        throughput = _rate(Engine.of(mix, model, limits, unlimited), ceiling)
        rate = max(rate, LEAST_SHARE * throughput)
    return rate * limits.engines


def _rate(engine: Engine, high: float) -> float:
    """Return the greatest rate up to `high` at which one engine meets its objective."""
    low = 0.0
    idle = engine.misses(0.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        met = math.prod(
            (1 - now) / (1 - always) if always < 1 else 1.0
            for now, always in zip(engine.misses(middle), idle, strict=True)
        )
        if met >= engine.slo.objective:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, slots=True)
class LeastLimits:
    """Smallest limits that one idle replica attains for the objective, of those that it misses."""

    ttft_seconds: float | None = None
    itl_seconds: float | None = None


def least_limits(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> LeastLimits:
    """Return the limits that no number of replicas attains, each raised as far as necessary."""
    ttft: float | None = None
    answered = 0.0
    for tokens, share in sorted(mix.prompts.points):
        ttft, answered = idle_ttft(tokens, model, limits), answered + share
        if answered >= slo.objective:
            break
    return LeastLimits(
        *(
            least if least is not None and limit is not None and limit < least else None
            for limit, least in ((slo.ttft_seconds, ttft), (slo.itl_seconds, idle_itl(mix, model)))
        )
    )


def _raised_limits(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> tuple[float, ...]:
    """Return, for each length of prompts, a TTFT limit that an idle engine clearly attains."""
    if slo.ttft_seconds is None:
        return ()
    return tuple(
        _raised(slo.ttft_seconds, idle_ttft(tokens, model, limits))
        for tokens, _ in mix.prompts.points
    )


def _unreached(limit: float, idle: float, reach: float) -> float:
    """Return how far a limit is left out: 0 from `reach` times the latency on an idle engine, 1 up
    to HOPELESS times that latency.
    """
    if limit >= reach * idle:
        return 0.0
    return min((reach - limit / idle) / (reach - HOPELESS), 1.0)


def _raised(limit: float, idle: float) -> float:
    """Return a limit that a request with this latency on an idle engine attains.

    It is continuous in both arguments, and rises from REACH to UNREACHABLE times `idle` while
    `limit` falls from REACH to HOPELESS times `idle`.
    """
    unreached = _unreached(limit, idle, REACH)
    if unreached == 0:
        return limit
    return idle * (1 + (REACH - 1) * math.pow((UNREACHABLE - 1) / (REACH - 1), unreached))
