"""Tests whether the effective GPU utilization is true: learns a step model from some mixes, and
compares the utilization with the true load on other mixes.

A shared machine may be a quarter faster in one minute than in another. So time is not counted in
seconds but in engine steps: a probe, always the same request, is measured before and after every
level, and all times of the level are scaled to the usual duration of the probe's steps. Learning,
searching and reading also alternate in rounds, so that an error of the probes meets all three.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement, cycle, product
from operator import mul
from statistics import mean, median

from llmservice_operator.scaling.assess import price_of
from llmservice_operator.scaling.capacity import sustainable_rate
from llmservice_operator.scaling.conditions import EngineLimits, ServiceLevelObjective
from llmservice_operator.scaling.hardware import CPU
from llmservice_operator.scaling.ledger import Tick
from llmservice_operator.scaling.signals import STEP_TERMS, Counters, StepSums, Tally
from llmservice_operator.scaling.step_model import StepModel, StepModelFit, prior_step_model
from llmservice_operator.scaling.traffic import TrafficMemory
from serving.servers import Server
from utilization.mixes import LEARNED, LONGEST_PROMPT, TESTED, Mix
from utilization.traffic import Level, offer
from utilization.truth import Trial, Truth, estimate, next_rate

SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Loads at which the readings are compared, one in each round, as shares of the present estimate of
the capacity."""
SEARCHES = (2, 2, 2, 1, 1)
"""Number of rates that each round tries for each mix. Later rounds try fewer rates, because their
readings are taken near the capacity and also serve as trials."""
LEARNED_SHARES = (0.35, 0.85)
"""Loads of the traffic for learning, as shares of the present estimate of the capacity: a low load,
and the autoscaler's target."""
NEAR = 0.25
"""A level is near the capacity if its rate differs from the capacity by at most this share. The
machine's usual speed follows from such levels."""
FEWEST_REQUESTS = 20
"""Minimum expected number of requests in a level of the search. Fewer requests do not determine a
share of 95 %. In a level, one mix is offered at one rate for some seconds."""
FEWEST_READ = 40
"""Minimum expected number of requests in a level in which the utilization is read. With fewer
requests, too large a share of them begins before the level or ends after it."""
PROBED = 0.3
"""First load of a new mix, as a share of the estimated capacity."""

_ITL_STEPS, _TTFT_STEPS = 3.0, 20.0
"""Limits of the SLO, as multiples of the step time of a single sequence. They correspond to 50 ms
and 500 ms for an 8B model on a large GPU."""


@dataclass(frozen=True)
class Size:
    """Durations of the levels, in seconds."""

    first_seconds: float = 5.0
    """Duration of the first level for learning, and of the first level of each tested mix. These
    levels only give a first estimate, which needs little precision."""
    lesson_seconds: float = 5.0
    """Duration of every other level for learning."""
    level_seconds: float = 8.0
    """Least duration of a level of the search for the capacity."""
    read_seconds: float = 14.0
    """Least duration of a level for a reading. Requests that began before the level are served in
    it, and requests that begin in it are served after it. The shorter the level, the more these
    requests make the served load differ from the offered load."""
    longest_seconds: float = 25.0
    """Duration up to which a level is extended if the rate is low."""

    def searching(self, rate: float) -> float:
        """Return the duration in seconds of a level of the search at this rate.

        The level is extended until FEWEST_REQUESTS requests are expected, so that some arrive even
        on a slow machine, but only up to `longest_seconds`.
        """
        return max(self.level_seconds, min(FEWEST_REQUESTS / rate, self.longest_seconds))

    def reading(self, rate: float) -> float:
        """Return the duration in seconds of a level for a reading at this rate.

        The level is extended until FEWEST_READ requests are expected, so that enough are served
        from start to end within the level, but only up to `longest_seconds`.
        """
        return max(self.read_seconds, min(FEWEST_READ / rate, self.longest_seconds))


@dataclass(frozen=True)
class Reading:
    """The true load of one mix at one rate and the value of each signal, in percent."""

    model: str
    mix: str
    offered: float
    truth: Truth
    utilization: float
    busy: float
    kv_usage: float
    batch_share: float
    attainment: float
    step_time: float
    """Step time of the engine, in percent of the model's prediction."""
    own_utilization: float
    """Utilization according to a step model that was learned from the same traffic, as in
    production."""

    @property
    def load(self) -> float:
        """True load, in percent of the true capacity."""
        return 100 * self.offered / self.truth.capacity

    @property
    def error(self) -> float:
        """Error of the utilization, in percent of the true load."""
        return 100 * abs(self.utilization / self.load - 1)

    @property
    def own_error(self) -> float:
        """Error of `own_utilization`, in percent of the true load."""
        return 100 * abs(self.own_utilization / self.load - 1)

    @property
    def error_bounds(self) -> tuple[float, float]:
        """Least and greatest error within the interval of the capacity, in percent."""
        ratios = [
            self.utilization / (100 * self.offered / rate)
            for rate in (self.truth.low, self.truth.high)
        ]
        errors = [100 * abs(ratio - 1) for ratio in ratios]
        spans_zero = min(ratios) <= 1 <= max(ratios)
        return (0.0 if spans_zero else min(errors)), max(errors)

    def row(self) -> dict[str, object]:
        """Return the reading as a row of the table."""
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
            "step/model %": self.step_time,
            "EGU, own model %": self.own_utilization,
        }


@dataclass
class Traffic:
    """One mix, and all levels that were measured with it."""

    mix: Mix
    seen: Counters = field(default_factory=Counters)
    levels: list[Level] = field(default_factory=list)
    read: list[Level] = field(default_factory=list)
    """Levels at which the signals are compared with the truth."""

    def trials(
        self, slo: ServiceLevelObjective, model: StepModel, usual_pace: float
    ) -> list[Trial]:
        """Return the outcomes of the requests at each level, scaled to the machine's usual speed.

        If the machine was slower during a level by some factor, the trial has a rate that is higher
        by this factor, and its requests are judged by latency limits that are longer by this
        factor.

        Two measurements give this factor. The time of the level's steps over the time that the step
        model predicts for steps with the same content compares levels of the same traffic. It is
        precise, but has the error of the model for this traffic. The pace of the probes compares
        all levels. It is right, but varies by chance, because a probe is short. So the first one is
        scaled such that its mean over the levels near the capacity is that of the second one. The
        error of the model then cancels out.
        """
        plain = [level.trial(slo) for level in self.levels]
        if not plain:
            return []
        capacity = estimate(plain, slo.objective).capacity
        near = [it for it in self.levels if abs(it.offered / capacity - 1) <= NEAR] or self.levels
        by_probes = mean(level.pace for level in near) / usual_pace
        scale = by_probes / _slowness(near, model)
        return [level.trial(slo, scale * _slowness([level], model)) for level in self.levels]


def _slowness(levels: Sequence[Level], model: StepModel) -> float:
    """Return the measured time of the engine's steps over the time that the model predicts."""
    took = sum(level.done.steps.seconds for level in levels)
    expected = sum(model.seconds_of(level.done.steps) for level in levels)
    return took / expected


def learned(prior: StepModel, levels: Iterable[Level], usual_pace: float) -> StepModel:
    """Return the step model that these levels teach, for a machine of the usual speed."""
    fit = StepModelFit(prior)
    for level in levels:
        steps = _scaled(level.done.steps, usual_pace / level.pace)
        fit = fit.learn(steps, level.seconds)
    return fit.model


def _scaled(steps: StepSums, factor: float) -> StepSums:
    """Return the sums of the same steps with `factor` times their duration."""
    of_term = [1.0] * (STEP_TERMS - 1) + [factor]
    factors = (first * second for first, second in combinations_with_replacement(of_term, 2))
    return StepSums(tuple(map(mul, steps.moments, factors)))


class Experiment:
    """One engine, the step model that is learned from it, and all mixes."""

    def __init__(self, server: Server, limits: EngineLimits, prior: StepModel, size: Size) -> None:
        self._server = server
        self._limits = limits
        self._size = size
        self._prior = prior
        self._levels: list[Level] = []
        """All levels, also those that only give a first estimate."""
        self._lessons_done: list[Level] = []
        self._seed = 0
        self._learned = [Traffic(mix) for mix in LEARNED]
        self._lessons = cycle(product(LEARNED_SHARES, self._learned))
        self.tested = [Traffic(mix) for mix in TESTED]
        self.slo = ServiceLevelObjective(30.0, 1.0)
        """Latency limits. They are arbitrary until the duration of a step is known. After that,
        they are fixed."""

    @property
    def model(self) -> StepModel:
        """The step model learned so far."""
        return learned(self._prior, self._lessons_done, self._usual_pace)

    @property
    def _usual_pace(self) -> float:
        """Usual duration in seconds of a step of the probe."""
        return median(level.pace for level in self._levels)

    def begin(self) -> None:
        """Learn enough to choose an SLO that suits the engine, and offer every tested mix once."""
        self._learn(self._learned[1], 1.0, self._size.first_seconds)
        for _ in range(len(LEARNED_SHARES) * len(self._learned)):
            self.slo = _slo(self.model)
            self._learn_more()
        self.slo = _slo(self.model)
        for traffic in self.tested:
            # Without these requests the mix would be unknown, and the search would begin far from
            # the capacity.
            self._offer(traffic, PROBED * self._believed(traffic), self._size.first_seconds)

    def round(self, number: int) -> None:
        """Learn more, search further, and read every signal of each mix at this round's load."""
        for traffic in self.tested:
            self._learn_more()
            for _ in range(SEARCHES[number]):
                trials = traffic.trials(self.slo, self.model, self._usual_pace)
                rate = next_rate(trials, self.slo.objective, self._believed(traffic))
                self._offer(traffic, rate, self._size.searching(rate))
            rate = SHARES[number] * self.truth(traffic).capacity
            traffic.read.append(self._offer(traffic, rate, self._size.reading(rate)))

    def truth(self, traffic: Traffic) -> Truth:
        """Return the estimate of the true capacity for a mix."""
        trials = traffic.trials(self.slo, self.model, self._usual_pace)
        return estimate(trials, self.slo.objective)

    def readings(self, name: str) -> Iterator[Reading]:
        """Yield a reading for every mix and load, with the truth as estimated from all results so
        far.
        """
        shared = self.model
        for tested in self.tested:
            truth = self.truth(tested)
            own = learned(self._prior, tested.levels, self._usual_pace)
            for level in tested.read:
                utilization, own_utilization = (
                    100 * effective_utilization(level, tested.seen, model, self._limits, self.slo)
                    for model in (shared, own)
                )
                yield Reading(
                    name,
                    tested.mix.name,
                    level.offered,
                    truth,
                    utilization,
                    busy=100 * level.busy,
                    kv_usage=100 * level.kv_usage,
                    batch_share=100 * level.batch_share,
                    attainment=100 * level.attainment(self.slo),
                    step_time=100 * _slowness([level], shared),
                    own_utilization=own_utilization,
                )

    def _learn_more(self) -> None:
        share, traffic = next(self._lessons)
        self._learn(traffic, share * self._believed(traffic), self._size.lesson_seconds)

    def _learn(self, traffic: Traffic, rate: float, seconds: float) -> None:
        self._lessons_done.append(self._offer(traffic, rate, seconds))

    def _offer(self, traffic: Traffic, rate: float, seconds: float) -> Level:
        self._seed += 1
        level = offer(self._server, traffic.mix, rate, seconds, self.slo, self._seed)
        traffic.seen = traffic.seen.plus(level.done)
        traffic.levels.append(level)
        self._levels.append(level)
        return level

    def _believed(self, traffic: Traffic) -> float:
        """Return the capacity in requests per second according to the product's formula."""
        mix = TrafficMemory(traffic.seen).mix
        if mix is None:
            return _rough_capacity(traffic.mix, self.model)
        return sustainable_rate(mix, self.model, self._limits, self.slo)


def prior_of(parameters: float, kv_bytes_per_token: float) -> StepModel:
    """Return the step model that a data sheet predicts for 32-bit weights on a CPU."""
    return prior_step_model(CPU, 4 * parameters, parameters, kv_bytes_per_token)


def _rough_capacity(mix: Mix, model: StepModel) -> float:
    """Return a rough capacity in requests per second, at which a search can start. It follows from
    the mix's mean lengths.
    """
    per_request = mix.prompt_mean * model.prefill + mix.answer_mean * model.sequence
    return 1 / max(per_request, mix.answer_mean * model.fixed / 8)


def _slo(model: StepModel) -> ServiceLevelObjective:
    step = model.fixed + model.sequence
    prompt = LONGEST_PROMPT * model.prefill
    return ServiceLevelObjective(_TTFT_STEPS * step + 2 * prompt, _ITL_STEPS * step)


def effective_utilization(
    level: Level,
    seen: Counters,
    model: StepModel,
    limits: EngineLimits,
    slo: ServiceLevelObjective,
) -> float:
    """Return the utilization of one replica as the product computes it: the served work per
    second, with the cost of a token in the mix seen so far.

    Raises RuntimeError if too few requests were finished to know the mix.
    """
    traffic = TrafficMemory(seen)
    mix = traffic.mix
    if mix is None:
        raise RuntimeError("too few requests were finished to know the mix: measure for longer")
    capacity = sustainable_rate(mix, model, limits, slo)
    price = price_of(mix, model, traffic.computed_share, capacity)
    return price.served(Tick(level.seconds, level.seconds, Tally.of(level.done)))
