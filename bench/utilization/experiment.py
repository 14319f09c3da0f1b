"""Is the effective GPU utilization true? Learn on some traffic, find the truth on other, compare.

The truth knows nothing of the product's formulas: it is the rate at which the share of requests
that meet the SLO by the client's clock falls below the objective, found by bisection.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from llmservice_operator.scaling.assess import price_of
from llmservice_operator.scaling.capacity import (
    EngineLimits,
    ServiceLevelObjective,
    sustainable_rate,
)
from llmservice_operator.scaling.hardware import CPU
from llmservice_operator.scaling.ledger import Tick
from llmservice_operator.scaling.signals import Counters
from llmservice_operator.scaling.step_model import StepModel, StepModelFit, prior_step_model
from llmservice_operator.scaling.traffic import TrafficMemory
from serving.servers import Server
from utilization.mixes import LEARNED, LONGEST_PROMPT, Mix
from utilization.traffic import Level, offer

SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Loads at which the readings are compared, as shares of the true capacity."""
FIRST_STEP = 1.3
"""Factor between two rates while the capacity is only enclosed, not yet halved."""
HALVINGS = 2
FEWEST_REQUESTS = 20
"""Expected in a level; fewer say nothing of a share of 95 %."""
PROBED = 0.3
"""Share of the capacity believed in at which a mix is met for the first time."""
SLOWEST_RATE = 0.05
"""Requests per second at which an engine that still misses its SLO is given up."""

_ITL_STEPS, _TTFT_STEPS = 3.0, 20.0
"""The SLO in steps of a lone sequence: what 50 ms and 500 ms are to an 8B model on a large GPU."""


@dataclass(frozen=True)
class Size:
    """How long everything takes."""

    level_seconds: float = 16.0
    learning_rates: tuple[float, ...] = (0.3, 0.7)
    """As shares of the rate that the model so far believes in."""

    def seconds_at(self, rate: float) -> float:
        """Long enough for some requests on a slow machine, too."""
        return max(self.level_seconds, min(FEWEST_REQUESTS / rate, 60.0))


@dataclass(frozen=True)
class Truth:
    """Two rates between which the attainment falls below the objective."""

    met: float
    missed: float

    @property
    def capacity(self) -> float:
        """Requests per second, in the middle of what is known."""
        return math.sqrt(self.met * self.missed)


@dataclass(frozen=True)
class Reading:
    """One mix at one load: what is true and what each signal says, in percent."""

    model: str
    mix: str
    offered: float
    truth: Truth
    utilization: float
    busy: float
    kv_usage: float
    batch_share: float
    attainment: float

    @property
    def load(self) -> float:
        """Percent of the true capacity."""
        return 100 * self.offered / self.truth.capacity

    @property
    def error(self) -> float:
        """Percent by which the utilization is off."""
        return 100 * abs(self.utilization / self.load - 1)

    @property
    def error_bounds(self) -> tuple[float, float]:
        """The least and the greatest error that the enclosed capacity allows."""
        ratios = [
            self.utilization / (100 * self.offered / rate)
            for rate in (self.truth.met, self.truth.missed)
        ]
        errors = [100 * abs(ratio - 1) for ratio in ratios]
        spans_zero = min(ratios) <= 1 <= max(ratios)
        return (0.0 if spans_zero else min(errors)), max(errors)

    def row(self) -> dict[str, object]:
        """The reading as a line of the table."""
        return {
            "model": self.model,
            "mix": self.mix,
            "requests/s": self.offered,
            "true load %": self.load,
            "EGU %": self.utilization,
            "error %": self.error,
            "busy %": self.busy,
            "KV %": self.kv_usage,
            "running/max %": self.batch_share,
            "attainment %": self.attainment,
        }


def learn(
    server: Server, parameters: float, kv_bytes: float, size: Size
) -> tuple[StepModel, ServiceLevelObjective]:
    """Return the step model that the learning traffic teaches, and an SLO that suits the engine."""
    fit = StepModelFit(prior_step_model(CPU, 4 * parameters, parameters, kv_bytes))
    anything = ServiceLevelObjective(30.0, 1.0)
    first = offer(server, LEARNED[1], 1.0, size.level_seconds / 2, anything, seed=1)
    fit = fit.learn(first.done.steps, first.seconds)
    slo = _slo(fit.model)
    for number, mix in enumerate(LEARNED):
        for share in size.learning_rates:
            rate = share * _rough_capacity(mix, fit.model)
            level = offer(server, mix, rate, size.level_seconds, slo, seed=10 + number)
            fit = fit.learn(level.done.steps, level.seconds)
            slo = _slo(fit.model)
    return fit.model, slo


def _rough_capacity(mix: Mix, model: StepModel) -> float:
    """Requests per second by the mix's own means: where to begin, right or not."""
    per_request = mix.prompt_mean * model.prefill + mix.answer_mean * model.sequence
    return 1 / max(per_request, mix.answer_mean * model.fixed / 8)


def _slo(model: StepModel) -> ServiceLevelObjective:
    step = model.fixed + model.sequence
    prompt = LONGEST_PROMPT * model.prefill
    return ServiceLevelObjective(_TTFT_STEPS * step + 2 * prompt, _ITL_STEPS * step)


def readings(
    server: Server,
    name: str,
    mix: Mix,
    model: StepModel,
    slo: ServiceLevelObjective,
    limits: EngineLimits,
    size: Size,
) -> Iterator[Reading]:
    """Find the true capacity for the mix, and read every signal at shares of it."""
    seen = Counters()

    def measure(rate: float, seed: int) -> Level:
        nonlocal seen
        level = offer(server, mix, rate, size.seconds_at(rate), slo, seed)
        seen = seen.plus(level.done)
        return level

    # Enough requests to know the mix by, or the search would begin far from where it ends.
    rate = PROBED * _rough_capacity(mix, model)
    probe = offer(server, mix, rate, size.seconds_at(rate) / 2, slo, seed=2)
    seen = seen.plus(probe.done)
    truth = find_capacity(measure, _believed(seen, model, limits, slo), slo)
    for number, share in enumerate(SHARES):
        level = measure(share * truth.capacity, 100 + number)
        yield Reading(
            name,
            mix.name,
            level.offered,
            truth,
            utilization=100 * effective_utilization(level, seen, model, limits, slo),
            busy=100 * level.busy,
            kv_usage=100 * level.kv_usage,
            batch_share=100 * level.batch_share,
            attainment=100 * level.attainment(slo),
        )


def effective_utilization(
    level: Level,
    seen: Counters,
    model: StepModel,
    limits: EngineLimits,
    slo: ServiceLevelObjective,
) -> float:
    """What the product says of one replica: work served, at the price of the mix seen so far."""
    traffic = TrafficMemory(seen)
    mix = traffic.mix
    if mix is None:
        raise RuntimeError("too few requests were finished to know the mix: measure for longer")
    capacity = sustainable_rate(mix, model, limits, slo)
    price = price_of(mix, model, traffic.computed_share, capacity)
    done = level.done
    return price.served(
        Tick(
            level.seconds,
            level.seconds,
            prompt_tokens_computed=done.prompt_tokens_computed,
            generated_tokens=done.generated_tokens,
        )
    )


def _believed(
    seen: Counters, model: StepModel, limits: EngineLimits, slo: ServiceLevelObjective
) -> float:
    mix = TrafficMemory(seen).mix
    return 2.0 if mix is None else sustainable_rate(mix, model, limits, slo)


def find_capacity(
    measure: Callable[[float, int], Level], guess: float, slo: ServiceLevelObjective
) -> Truth:
    """Enclose the rate at which the attainment falls below the objective, then halve.

    `guess` is only where the search begins. Raises RuntimeError when not even one request every 20
    seconds meets the SLO: the machine is busy with something else.
    """
    met: float | None = None
    missed: float | None = None
    rate, seed = guess, 1000
    while met is None or missed is None:
        if measure(rate, seed).attainment(slo) >= slo.objective:
            met, rate = rate, rate * FIRST_STEP
        else:
            missed, rate = rate, rate / FIRST_STEP
        if rate < SLOWEST_RATE:
            raise RuntimeError("the SLO is missed without load: is the machine busy otherwise?")
        seed += 1
    truth = Truth(met, missed)
    for _ in range(HALVINGS):
        middle = measure(truth.capacity, seed)
        if middle.attainment(slo) >= slo.objective:
            truth = replace(truth, met=middle.rate)
        else:
            truth = replace(truth, missed=middle.rate)
        seed += 1
    return truth
