"""The request rate at which one replica still meets its SLO: the 100 % of effective utilization.

SLO attainment is a tail, so the mean step is not enough: what decides is how unlucky the
unluckiest few requests are. At rate λ, with step model T = a + bp·p + d·n (d = seconds per
decoding sequence, its KV reads included), three things make a request miss:

* ITL. A request of O tokens takes O - 1 steps. While it decodes for t = (O-1)·τ seconds, prefills
  arrive as a compound Poisson process: a mean share λE[S] of the time and a variance λE[S²]/t
  (S = bp·prompt). The shorter the answer, the more the few prefills between its tokens decide.
  The batch n is a birth-death process whose stationary law is negative binomial, mean
  (r+q)/(1-q) and variance (r+q)/(1-q)², with r = λ(O-1)a/(1-λE[S]) and q = λ(O-1)d/(1-λE[S]).
  The request misses when prefill share + n·d/τ exceeds 1 - a/τ.
* TTFT. Prompts queue for the step's token budget: an M/G/1 queue with service bp + step/budget
  seconds per token.
* Admission. All sequence slots are in use for longer than the TTFT, or all KV tokens are in use.

The capacity is the rate at which what load adds to the misses reaches 1 - objective. With long
answers and small prompts it is the rate at which the mean ITL meets the SLO.
"""

import math
from dataclasses import dataclass

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
    """What one replica can hold at once."""

    max_sequences: int
    kv_capacity_tokens: float
    max_step_tokens: int


@dataclass(frozen=True, slots=True)
class RequestMix:
    """What an average moment of traffic is made of."""

    prompts: Lengths
    """Prompt tokens that must be computed: what the prefix cache saves is taken off."""
    answers: Lengths
    kv_per_sequence: float
    """KV tokens that a running sequence holds; measured, because long answers stay longer."""

    def work(self, model: StepModel) -> float:
        """GPU-seconds that one mean request adds to the steps it takes part in."""
        return self.prompt_work(model) + self.answers.mean * self.token_work(model)

    def prompt_work(self, model: StepModel) -> float:
        return self.prompts.mean * model.prefill

    def token_work(self, model: StepModel) -> float:
        """Seconds that one more decoding sequence adds to a step."""
        return model.sequence + model.kv * self.kv_per_sequence


@dataclass(frozen=True, slots=True)
class _Load:
    """One replica at one request rate."""

    rate: float
    prefill_share: float
    """Share of the time that prefill takes."""
    batch_mean: float
    batch_variance: float
    relaxation: float
    """How much slower than one request's stay the batch forgets, as a factor ≥ 1."""
    token_work: float
    step: float
    """Seconds of a step without prefill at the mean batch."""

    @classmethod
    def at(cls, rate: float, mix: RequestMix, model: StepModel) -> "_Load | None":
        """The replica's steady state; None when it has none: work comes faster than it is done."""
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
        return cls(rate, prefill_share, mean, mean / (1 - q), 1 / (1 - q), token_work, step)


def sustainable_rate(
    mix: RequestMix, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> float:
    """Requests per second that one replica serves while its SLO holds."""
    low, high = 0.0, 1 / mix.work(model)
    idle = _misses(0.0, mix, model, limits, slo)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        misses = _misses(middle, mix, model, limits, slo)
        met = math.prod(
            (1 - now) / (1 - always) if always < 1 else 1.0
            for now, always in zip(misses, idle, strict=True)
        )
        if met >= slo.objective:
            low = middle
        else:
            high = middle
    return high


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
    return 1 - math.prod(1 - miss for miss in _misses(rate, mix, model, limits, slo))


def _misses(
    rate: float,
    mix: RequestMix,
    model: StepModel,
    limits: EngineLimits,
    slo: ServiceLevelObjective,
) -> tuple[float, float, float]:
    """Shares of requests that miss by ITL, by TTFT, and because the replica is full."""
    load = _Load.at(rate, mix, model)
    if load is None:
        return (
            0.0 if slo.itl_seconds is None else 1.0,
            0.0 if slo.ttft_seconds is None else 1.0,
            1.0,
        )
    return (
        0.0 if slo.itl_seconds is None else _itl_missed(load, mix, model, limits, slo.itl_seconds),
        0.0
        if slo.ttft_seconds is None
        else _ttft_missed(load, mix, model, limits, slo.ttft_seconds),
        _not_admitted(load, mix, model, limits, slo.ttft_seconds),
    )


def _itl_missed(
    load: _Load, mix: RequestMix, model: StepModel, limits: EngineLimits, itl: float
) -> float:
    spare = 1 - model.fixed / itl
    batch_share = load.batch_mean * load.token_work / itl
    batch_variance = load.batch_variance * (load.token_work / itl) ** 2
    arriving_variance = load.rate * mix.prompts.mean_square * model.prefill**2
    mean_steps = max(mix.answers.mean - 1, 1.0)

    # No step is longer than a full one. Where even that one meets the SLO, prefill cannot break it.
    unbreakable = model.fixed + limits.max_step_tokens * model.prefill
    batch_room = (itl - unbreakable) / max(load.token_work - model.prefill, 1e-12)
    breakable = (
        _tail(load.batch_mean, load.batch_variance, batch_room) if unbreakable < itl else 1.0
    )
    missed = 0.0
    for tokens, share in mix.answers.points:
        steps = tokens - 1
        if steps <= 0:
            continue
        # The batch wanders while the request decodes: the longer the stay, the more averages out.
        stays = steps / mean_steps / load.relaxation
        variance = arriving_variance / (steps * itl) + batch_variance * _averaging(stays)
        over = _tail(load.prefill_share + batch_share, variance, spare)
        missed += share * min(over, breakable)
    return missed


def _ttft_missed(
    load: _Load, mix: RequestMix, model: StepModel, limits: EngineLimits, ttft: float
) -> float:
    budget = max(limits.max_step_tokens - load.batch_mean, 1.0)
    per_token = model.prefill + load.step / budget
    busy = load.rate * mix.prompts.mean * per_token
    if busy >= 1:
        return 1.0
    wait = load.rate * mix.prompts.mean_square * per_token**2 / (2 * (1 - busy))
    half_plain_step = load.step / (1 - load.prefill_share) / 2
    half_full_step = budget * per_token / 2
    missed = 0.0
    for tokens, share in mix.prompts.points:
        # Alone, a prompt waits for the running step. In a queue, it fills whole steps with others
        # and its first token leaves at the end of the last one.
        alone = half_plain_step + max(1.0, tokens / budget) * load.step + tokens * model.prefill
        room = ttft - half_full_step - tokens * per_token
        late = 1.0 if room <= 0 else math.exp(-busy * room / wait) if wait > 0 else 0.0
        missed += share * (busy * late + (1 - busy) * (alone > ttft))
    return missed


def _not_admitted(
    load: _Load, mix: RequestMix, model: StepModel, limits: EngineLimits, ttft: float | None
) -> float:
    """Share of the requests that find every slot, or every KV token, in use for too long.

    A slot is free again when one of the running sequences ends, so a wait for it may be short.
    KV tokens that run out cost a preemption at once.
    """
    slots = limits.max_sequences
    blocked = _tail(load.batch_mean, load.batch_variance, slots)
    full_step = model.fixed + slots * load.token_work
    freed = slots * (1 - load.prefill_share) / (max(mix.answers.mean - 1, 1.0) * full_step)
    if freed <= load.rate:
        return 1.0
    late = blocked * math.exp(-(freed - load.rate) * (ttft or 0.0))
    held = load.batch_mean * mix.kv_per_sequence
    held_variance = mix.kv_per_sequence**2 * (
        load.batch_variance + load.batch_mean * RESIDENT_SPREAD**2
    )
    return max(late, _tail(held, held_variance, limits.kv_capacity_tokens))


def _averaging(stays: float) -> float:
    """Variance of the mean of a relaxing process over a time, as a share of its variance.

    The time is in units of its relaxation time.
    """
    if stays < 1e-3:
        return 1.0
    return 2 / stays**2 * (stays - 1 + math.exp(-stays))


def _tail(mean: float, variance: float, limit: float) -> float:
    """P(X > limit) of a gamma variable with this mean and variance (Wilson-Hilferty)."""
    if limit <= 0:
        return 1.0
    if mean < NOTHING * limit or variance <= 0:
        return 1.0 if mean > limit else 0.0
    spread = variance / mean / mean / 9
    score = ((limit / mean) ** (1 / 3) - 1 + spread) / math.sqrt(spread)
    return 0.5 * math.erfc(score / math.sqrt(2))
