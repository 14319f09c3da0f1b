"""The request rate at which one replica still meets its SLO: the 100 % of effective utilization.

SLO attainment is a tail, so the mean step is not enough: what decides is how unlucky the
unluckiest few requests are. At rate λ, with step model T = a + bp·p + d·n (d = seconds per
decoding sequence, its KV reads included), three things make a request miss:

* ITL. A request of O tokens takes s = O - 1 steps, and has missed when they take longer than s·τ.
  Alone they take s·(a + d). To this comes d for each step that it shares with a sequence that it
  finds (the batch n is a birth-death process whose stationary law is negative binomial, mean
  (r+q)/(1-q) and variance (r+q)/(1-q)², with r = λ(O-1)a/(1-λE[S]) and q = λ(O-1)d/(1-λE[S])).
  Then requests arrive, each with X = S + d·(steps shared), S = bp·prompt, and what they add makes
  room for more of them: a busy period, of mean w/(1-λE[X]) and variance
  V/(1-λE[X])² + w·λE[X²]/(1-λE[X])³ for an initial work of mean w and variance V. Those that came
  while its own prompt was computed wait for its first step, too. The shorter the answer, the more
  a few prefills between its tokens decide. With speculative decoding, where a step brings k tokens
  of a sequence, a request takes (O - 1)/k steps, and each of them may take k·τ.
* TTFT. Prompts queue for the step's token budget: an M/G/1 queue with service bp + step/budget
  seconds per token.
* Admission. All sequence slots are in use for longer than the TTFT, or all KV tokens are in use.

The capacity is the rate at which what load adds to the misses reaches 1 - objective. With long
answers and small prompts it is the rate at which the mean ITL meets the SLO.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmservice_operator.scaling.lengths import Lengths
from llmservice_operator.scaling.step_model import StepModel

RESIDENT_SPREAD = 1.0
"""Coefficient of variation of the KV tokens of one running sequence: a judgement between fixed
lengths (0.3) and heavy-tailed ones (1.5)."""

BISECTIONS = 24

NOTHING = 1e-9
"""A mean this small beside its limit never reaches it."""


@dataclass(frozen=True, slots=True)
class ServiceLevelObjective:
    """What share of the requests must be how fast; None leaves a latency unlimited."""

    ttft_seconds: float | None = 0.5
    itl_seconds: float | None = 0.05
    """Longest mean inter-token latency of one request."""
    objective: float = 0.95


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine can hold at once, and how many of them share a replica's requests."""

    max_sequences: int
    kv_capacity_tokens: float
    max_step_tokens: int
    engines: int = 1


@dataclass(frozen=True, slots=True)
class RequestMix:
    """What an average moment of traffic is made of."""

    prompts: Lengths
    """Prompt tokens that must be computed: what the prefix cache saves is taken off."""
    answers: Lengths
    kv_per_sequence: float
    """KV tokens that a running sequence holds; measured, because long answers stay longer."""
    tokens_per_step: float = 1.0
    """Tokens that a decoding sequence gets from a step: more than one with speculative decoding."""

    def work(self, model: StepModel) -> float:
        """GPU-seconds that one mean request adds to the steps it takes part in."""
        return self.prompt_work(model) + self.answers.mean * self.token_work(model)

    def prompt_work(self, model: StepModel) -> float:
        return self.prompts.mean * model.prefill

    def token_work(self, model: StepModel) -> float:
        """Seconds that one token of an answer adds to the steps."""
        return (model.sequence + model.kv * self.kv_per_sequence) / self.tokens_per_step

    def in_steps(self) -> "RequestMix":
        """Return the mix as the engine sees it: a sequence stays for steps, however many tokens
        each of them brings.
        """
        if self.tokens_per_step == 1:
            return self
        steps = (
            (1 + max(tokens - 1, 0.0) / self.tokens_per_step, share)
            for tokens, share in self.answers.points
        )
        return replace(self, answers=Lengths(tuple(steps)), tokens_per_step=1.0)


def sustainable_rate(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> float:
    """Requests per second that one replica serves while its SLO holds."""
    engine = _Engine.of(mix, model, limits, slo)
    low, high = 0.0, 1 / mix.work(model)
    idle = engine.misses(0.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        met = math.prod(
            (1 - now) / (1 - always) if always < 1 else 1.0
            for now, always in zip(engine.misses(middle), idle, strict=True)
        )
        if met >= slo.objective:
            low = middle
        else:
            high = middle
    return high * limits.engines


def missed_share(
    rate: float,
    mix: RequestMix,
    model: StepModel,
    limits: EngineLimits,
    slo: ServiceLevelObjective,
) -> float:
    """Share of the requests that miss the SLO on one replica at this rate.

    At rate 0 it is what no number of replicas can repair: prompts too long for the TTFT.
    """
    engine = _Engine.of(mix, model, limits, slo)
    return 1 - math.prod(1 - miss for miss in engine.misses(rate / limits.engines))


@dataclass(frozen=True, slots=True)
class _Shared:
    """Steps that a request shares with one other sequence: their mean and mean square."""

    mean: float
    square: float

    def work(self, token: float) -> "_Shared":
        """Seconds that the other adds to these steps at so many a step."""
        return _Shared(token * self.mean, token**2 * self.square)

    def after(self, prompt: "_Shared") -> "_Shared":
        """With another, independent amount before it."""
        return _Shared(
            prompt.mean + self.mean, prompt.square + 2 * prompt.mean * self.mean + self.square
        )


@dataclass(frozen=True, slots=True)
class _Stay:
    """The answers of one length, and who shares their steps."""

    steps: float
    """Steps after the one that gives the first token."""
    share: float
    """Of all requests."""
    found: _Shared
    """With a sequence that decodes already when the stay begins."""
    joined: _Shared
    """With one that begins to decode at any time during the stay."""
    begun: _Shared
    """With one that begins to decode as soon as the stay begins."""


def _stays(answers: Lengths) -> tuple[_Stay, ...]:
    every = [(max(tokens - 1, 0.0), share) for tokens, share in answers.points]
    mean = sum(steps * share for steps, share in every)
    return tuple(
        _Stay(
            steps,
            share,
            # Longer answers are found more often, and at any point of their own stay.
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
    """What is left of a whole at a moment that is as likely as any other, but `limit` at most."""
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
    """Seconds of a step without prefill at the mean batch."""

    @classmethod
    def at(cls, rate: float, mix: RequestMix, model: StepModel) -> "_Load | None":
        """The engine's steady state; None when it has none: work comes faster than it is done."""
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
class _Engine:
    """One engine and what it is asked for."""

    mix: RequestMix
    model: StepModel
    limits: EngineLimits
    slo: ServiceLevelObjective
    stays: tuple[_Stay, ...]

    @classmethod
    def of(
        cls, mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
    ) -> "_Engine":
        steps, itl = mix.in_steps(), slo.itl_seconds
        # A step may take as long as all the tokens that it brings.
        step_slo = replace(slo, itl_seconds=itl and mix.tokens_per_step * itl)
        return cls(steps, model, limits, step_slo, _stays(steps.answers))

    def misses(self, rate: float) -> tuple[float, float, float]:
        """Shares of requests that miss by ITL, by TTFT, and because the replica is full."""
        itl, ttft = self.slo.itl_seconds, self.slo.ttft_seconds
        load = _Load.at(rate, self.mix, self.model)
        if load is None:
            return (0.0 if itl is None else 1.0, 0.0 if ttft is None else 1.0, 1.0)
        return (
            0.0 if itl is None else self._itl_missed(load, itl),
            0.0 if ttft is None else self._ttft_missed(load, ttft),
            self._not_admitted(load, ttft or 0.0),
        )

    def _itl_missed(self, load: _Load, itl: float) -> float:
        prompts, prefill = self.mix.prompts, self.model.prefill
        prompt = _Shared(prefill * prompts.mean, prefill**2 * prompts.mean_square)
        # While its own prompt is computed, more requests come than in a mean step.
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
            missed += stay.share * _tail(added, variance, stay.steps * itl - alone)
        return min(missed, self._breakable(load, itl))

    def _breakable(self, load: _Load, itl: float) -> float:
        """How often the batch is so large that a step full of prefill is longer than the ITL.

        Where even that one meets the SLO, prefill cannot break it.
        """
        full = self.model.fixed + self.limits.max_step_tokens * self.model.prefill
        if full >= itl:
            return 1.0
        room = (itl - full) / max(load.token_work - self.model.prefill, 1e-12)
        return _tail(load.batch_mean, load.batch_variance, room)

    def _budget(self, load: _Load) -> float:
        """Prompt tokens that a step takes beside the sequences that decode."""
        return max(self.limits.max_step_tokens - load.batch_mean, 1.0)

    def _ttft_missed(self, load: _Load, ttft: float) -> float:
        mix, model, budget = self.mix, self.model, self._budget(load)
        per_token = model.prefill + load.step / budget
        busy = load.rate * mix.prompts.mean * per_token
        if busy >= 1:
            return 1.0
        wait = load.rate * mix.prompts.mean_square * per_token**2 / (2 * (1 - busy))
        half_plain_step = load.step / (1 - load.prefill_share) / 2
        half_full_step = budget * per_token / 2
        missed = 0.0
        for tokens, share in mix.prompts.points:
            # Alone, a prompt waits for the running step. In a queue, it fills whole steps with
            # others and its first token leaves at the end of the last one.
            alone = half_plain_step + max(1.0, tokens / budget) * load.step + tokens * model.prefill
            room = ttft - half_full_step - tokens * per_token
            late = 1.0 if room <= 0 else math.exp(-busy * room / wait) if wait > 0 else 0.0
            missed += share * (busy * late + (1 - busy) * (alone > ttft))
        return missed

    def _not_admitted(self, load: _Load, ttft: float) -> float:
        """Share of the requests that find every slot, or every KV token, in use for too long.

        A slot is free again when one of the running sequences ends, so a wait for it may be short.
        KV tokens that run out cost a preemption at once.
        """
        mix, slots = self.mix, self.limits.max_sequences
        blocked = _tail(load.batch_mean, load.batch_variance, slots)
        full_step = self.model.fixed + slots * load.token_work
        freed = slots * (1 - load.prefill_share) / (max(mix.answers.mean - 1, 1.0) * full_step)
        if freed <= load.rate:
            return 1.0
        late = blocked * math.exp(-(freed - load.rate) * ttft)
        held = load.batch_mean * mix.kv_per_sequence
        held_variance = mix.kv_per_sequence**2 * (
            load.batch_variance + load.batch_mean * RESIDENT_SPREAD**2
        )
        return max(late, _tail(held, held_variance, self.limits.kv_capacity_tokens))


def _tail(mean: float, variance: float, limit: float) -> float:
    """P(X > limit) of a gamma variable with this mean and variance (Wilson-Hilferty)."""
    if limit <= 0:
        return 1.0
    if mean < NOTHING * limit or variance <= 0:
        return 1.0 if mean > limit else 0.0
    spread = variance / mean / mean / 9
    score = ((limit / mean) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    return 0.5 * math.erfc(score / math.sqrt(2))
