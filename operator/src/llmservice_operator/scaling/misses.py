"""The shares of requests that miss the SLO on one engine at one request rate.

A request misses its SLO by its ITL, by its TTFT, or because the engine is full. docs/capacity.md
derives every formula, and this module uses its symbols.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from llmservice_operator.scaling.conditions import (
    EngineLimits,
    RequestMix,
    ServiceLevelObjective,
)
from llmservice_operator.scaling.lengths import Lengths
from llmservice_operator.scaling.step_model import StepModel

KV_SPREAD = 1.0
"""Assumed coefficient of variation of the KV tokens of one running sequence. It lies between the
values for fixed lengths (0.3) and for heavy-tailed lengths (1.5)."""

LIKELY_DEVIATIONS = 3.0
"""Number of standard deviations above the mean of the largest batch that is likely."""

NEGLIGIBLE = 1e-9
"""A variable whose mean is below this share of a limit is assumed never to reach the limit."""


class Misses(NamedTuple):
    """Shares of the requests that miss the SLO, by cause."""

    itl: float
    ttft: float
    admission: float

    @property
    def share(self) -> float:
        """Share of the requests that miss for any cause. The causes are taken as independent."""
        return 1 - math.prod(1 - miss for miss in self)


def misses(
    rate: float,
    mix: RequestMix,
    model: StepModel,
    limits: EngineLimits,
    slo: ServiceLevelObjective,
) -> Misses:
    """Return the misses on one replica that gets `rate` requests per second.

    The misses at rate 0 are those that more replicas cannot prevent, such as the misses of prompts
    that are too long for the TTFT limit.
    """
    return Engine.of(mix, model, limits, slo).misses(rate / limits.engines)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Steps that a request shares with one other sequence: mean and mean square of their number."""

    mean: float
    square: float

    def work(self, token: float) -> "_Shared":
        """Return the seconds that the other sequence adds to these steps, at `token` seconds per
        step.
        """
        return _Shared(token * self.mean, token**2 * self.square)

    def after(self, prompt: "_Shared") -> "_Shared":
        """Return the sum of this phase and of `prompt`, an independent phase before it."""
        return _Shared(
            prompt.mean + self.mean, prompt.square + 2 * prompt.mean * self.mean + self.square
        )


@dataclass(frozen=True, slots=True)
class _Stay:
    """Answers of one length, and the steps that they share with other sequences."""

    steps: float
    """Steps after the one that gives the first token."""
    share: float
    """Share of all requests that have answers of this length."""
    found: _Shared
    """Steps shared with a sequence that already decodes when the stay begins."""
    joined: _Shared
    """Steps shared with a sequence that begins to decode during the stay."""
    begun: _Shared
    """Steps shared with a sequence that begins to decode at the same time as the stay."""


def _stays(answers: Lengths) -> tuple[_Stay, ...]:
    every = [(max(tokens - 1, 0.0), share) for tokens, share in answers.points]
    mean = sum(steps * share for steps, share in every)
    return tuple(
        _Stay(
            steps,
            share,
            # A random moment falls into a long stay more often than into a short one, and is
            # uniform within the stay.
            found=_over([(_any_part(other, steps), of * other / mean) for other, of in every]),
            joined=_over([(_any_part(steps, other), of) for other, of in every]),
            begun=_over([(_Shared(m := min(steps, other), m * m), of) for other, of in every]),
        )
        for steps, share in every
        if steps > 0
    )


def _over(cases: Sequence[tuple[_Shared, float]]) -> _Shared:
    return _Shared(
        sum(case.mean * share for case, share in cases),
        sum(case.square * share for case, share in cases),
    )


def _any_part(whole: float, limit: float) -> _Shared:
    """Return the steps from a uniformly random moment of a stay to its end, at most `limit`.

    The stay has `whole` steps.
    """
    if whole <= limit:
        return _Shared(whole / 2, whole**2 / 3)
    return _Shared(limit - limit**2 / (2 * whole), limit**2 - 2 / 3 * limit**3 / whole)


@dataclass(frozen=True, slots=True)
class _Load:
    """One engine at one request rate."""

    rate: float
    prefill_share: float
    """Share of the time that prefill takes."""
    batch_mean: float
    batch_variance: float
    token_work: float
    step: float
    """Seconds of a step at the mean batch, without prefill."""

    @classmethod
    def at(cls, rate: float, mix: RequestMix, model: StepModel) -> "_Load | None":
        """Return the steady state. None if work arrives faster than the engine completes it."""
        prefill_share = rate * mix.prompt_work(model)
        if prefill_share >= 1:
            return None
        decode_rate = rate * max(mix.answers.mean - 1, 0) / (1 - prefill_share)
        token_work = mix.token_work(model)
        q = decode_rate * token_work
        if q >= 1:
            return None
        mean = (decode_rate * model.fixed + q) / (1 - q)
        step = model.fixed + mean * token_work
        return cls(rate, prefill_share, mean, mean / (1 - q), token_work, step)


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine under one kind of traffic."""

    mix: RequestMix
    model: StepModel
    limits: EngineLimits
    slo: ServiceLevelObjective
    stays: tuple[_Stay, ...]
    ttft_limits: tuple[float, ...]
    """TTFT limit of each length of prompts. Empty without a limit."""

    @classmethod
    def of(
        cls,
        mix: RequestMix,
        model: StepModel,
        limits: EngineLimits,
        slo: ServiceLevelObjective,
        ttft_limits: tuple[float, ...] | None = None,
    ) -> "Engine":
        """Return the engine. `ttft_limits` are other limits than that of the objective, one for
        each length of prompts.
        """
        steps, itl, ttft = mix.in_steps(), slo.itl_seconds, slo.ttft_seconds
        if itl is not None:
            # A step that gives k tokens may take k times the ITL limit.
            itl *= mix.tokens_per_step
        if ttft is None:
            ttft_limits = ()
        elif ttft_limits is None:
            ttft_limits = (ttft,) * len(steps.prompts.points)
        step_slo = replace(slo, itl_seconds=itl)
        return cls(steps, model, limits, step_slo, _stays(steps.answers), ttft_limits)

    def misses(self, rate: float) -> Misses:
        itl, ttft = self.slo.itl_seconds, self.slo.ttft_seconds
        load = _Load.at(rate, self.mix, self.model)
        if load is None:
            return Misses(0.0 if itl is None else 1.0, 0.0 if ttft is None else 1.0, 1.0)
        return Misses(
            0.0 if itl is None else self._itl_missed(load, itl),
            0.0 if ttft is None else self._ttft_missed(load),
            self._not_admitted(load, ttft or 0.0),
        )

    def _itl_missed(self, load: _Load, itl: float) -> float:
        prompts, prefill = self.mix.prompts, self.model.prefill
        prompt = _Shared(prefill * prompts.mean, prefill**2 * prompts.mean_square)
        # Requests also arrive while the prompt is computed. The computation takes longer than a
        # mean step.
        longer = (
            prompt.mean
            + load.prefill_share * load.rate * prompt.square
            + load.step * prompts.mean_excess(self._budget(load))
        )
        waiting = load.rate * longer
        missed = 0.0
        for stay in self.stays:
            alone = stay.steps * (self.model.fixed + load.token_work)
            found, joined, begun = (
                it.work(load.token_work) for it in (stay.found, stay.joined, stay.begun)
            )
            first, later = begun.after(prompt), joined.after(prompt)
            work = load.batch_mean * found.mean + waiting * first.mean
            variance = (
                load.batch_mean * found.square
                + (load.batch_variance - load.batch_mean) * found.mean**2
                + waiting * first.square
            )
            left = 1 - load.rate * later.mean
            added = (alone + work) / left - alone
            variance = variance / left**2 + (alone + work) * load.rate * later.square / left**3
            longest = stay.steps * self._longest_step(load) - alone
            missed += stay.share * _tail_up_to(added, variance, stay.steps * itl - alone, longest)
        return min(missed, self._breakable(load, itl))

    def _longest_step(self, load: _Load) -> float:
        """Return the seconds of a step full of prefill, with the largest batch that is likely."""
        batch = load.batch_mean + LIKELY_DEVIATIONS * math.sqrt(load.batch_variance)
        full = self.model.fixed + self.limits.max_step_tokens * self.model.prefill
        return full + max(load.token_work - self.model.prefill, 0.0) * batch

    def _breakable(self, load: _Load, itl: float) -> float:
        """Return the probability that the batch is so large that a step full of prefill exceeds the
        ITL limit. At most this share of the requests misses the limit, because a full step is the
        longest step.
        """
        full = self.model.fixed + self.limits.max_step_tokens * self.model.prefill
        if full >= itl:
            return 1.0
        room = (itl - full) / max(load.token_work - self.model.prefill, 1e-12)
        return _tail(load.batch_mean, load.batch_variance, room)

    def _budget(self, load: _Load) -> float:
        """Return the prompt tokens that fit into a step in addition to the decoding sequences."""
        return max(self.limits.max_step_tokens - load.batch_mean, 1.0)

    def _ttft_missed(self, load: _Load) -> float:
        mix, model, budget = self.mix, self.model, self._budget(load)
        per_token = model.prefill + load.step / budget
        busy = load.rate * mix.prompts.mean * per_token
        if busy >= 1:
            return 1.0
        wait = load.rate * mix.prompts.mean_square * per_token**2 / (2 * (1 - busy))
        half_plain_step = load.step / (1 - load.prefill_share) / 2
        # A step of a queue computes the prompts that arrived during the step before it. Long
        # prompts fill it, while a queue of short ones rarely does.
        met = mix.prompts.mean_square / max(mix.prompts.mean, 1.0)
        filled = min((load.rate * mix.prompts.mean * 2 * half_plain_step + met) / budget, 1.0)
        queue_step = load.step + filled * budget * model.prefill
        missed = 0.0
        for (tokens, share), ttft in zip(mix.prompts.points, self.ttft_limits, strict=True):
            # Without a queue, a prompt waits for the running step. In a queue of full steps, the
            # first token of a prompt is sent when the prompt's last step ends. If the steps are not
            # full, a prompt takes the whole step after the running one.
            alone = half_plain_step + max(1.0, tokens / budget) * load.step + tokens * model.prefill
            room = ttft - (1.5 - filled) * queue_step - tokens * per_token
            late = 1.0 if room <= 0 else math.exp(-busy * room / wait) if wait > 0 else 0.0
            missed += share * (busy * late + (1 - busy) * (alone > ttft))
        return missed

    def _not_admitted(self, load: _Load, ttft: float) -> float:
        """Return the share of the requests that wait too long for a slot, or for KV tokens.

        A slot becomes free when a running sequence ends, so the wait may be short. When the KV
        tokens run out, a sequence is preempted immediately.
        """
        mix, slots = self.mix, self.limits.max_sequences
        blocked = _tail(load.batch_mean, load.batch_variance, slots)
        full_step = self.model.fixed + slots * load.token_work
        freed = slots * (1 - load.prefill_share) / (max(mix.answers.mean - 1, 1.0) * full_step)
        if freed <= load.rate:
            return 1.0
        late = blocked * math.exp(-(freed - load.rate) * ttft)
        held = load.batch_mean * mix.kv_tokens_per_sequence
        held_variance = mix.kv_tokens_per_sequence**2 * (
            load.batch_variance + load.batch_mean * KV_SPREAD**2
        )
        return max(late, _tail(held, held_variance, self.limits.kv_capacity_tokens))


def _tail_up_to(mean: float, variance: float, limit: float, most: float) -> float:
    """Return P(X > limit) of the variable of `_tail` if X never exceeds `most`."""
    above = _tail(mean, variance, limit)
    beyond = min(_tail(mean, variance, most), above)
    return (above - beyond) / (1 - beyond) if beyond < 1 else 0.0 if most <= limit else 1.0


def _tail(mean: float, variance: float, limit: float) -> float:
    """Return P(X > limit) of a gamma variable with this mean and variance (Wilson-Hilferty)."""
    if limit <= 0:
        return 1.0
    if mean < NEGLIGIBLE * limit or variance <= 0:
        return 1.0 if mean > limit else 0.0
    spread = variance / mean / mean / 9
    score = ((limit / mean) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    return 0.5 * math.erfc(score / math.sqrt(2))
