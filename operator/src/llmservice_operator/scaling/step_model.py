"""Learns the duration of an engine step online from the service's own traffic.

    seconds = fixed + prefill·(prefill tokens) + sequence·(sequences) + kv·(KV tokens read)

The method is recursive least squares with forgetting, in information form. Old sums lose weight,
and new sums are added. The prior decides where the traffic does not separate two terms.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import median

from llmservice_operator.scaling.signals import StepSums

FORGETTING_PER_SECOND = 0.999
"""The weight of old steps halves in 11.5 minutes of traffic."""

WARM_UP_SECONDS = 60.0
"""Time in seconds after a replica became Ready during which its steps are ignored, because
compilation and cold caches slow them."""

STEP_NOISE = 0.1
"""Standard deviation of the measured step durations around the model, as a share of the mean
step."""

PRIOR_SPREAD = 0.5
"""Standard deviation of each coefficient of a prior, as a share of the coefficient's unit."""

LEAST_SHARE = 0.1
"""The unit of a coefficient is at least this share of a reference. The reference is the guessed
coefficient, times the median ratio of the learned coefficients to their guesses.

Without this bound, a coefficient that was once fitted as zero could never grow again.
"""

SECONDS = 4
COEFFICIENTS = 4


@dataclass(frozen=True, slots=True)
class StepModel:
    """Seconds of an engine step by its content."""

    fixed: float
    """Seconds of an empty step: reading the weights, launching kernels."""
    prefill: float
    """Seconds per prompt token computed."""
    sequence: float
    """Seconds per sequence that decodes."""
    kv: float
    """Seconds per KV token read."""

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        return (self.fixed, self.prefill, self.sequence, self.kv)

    def seconds_of(self, sums: StepSums) -> float:
        """Return the total seconds of all these steps."""
        return sum(each * sums.moment(0, i) for i, each in enumerate(self.coefficients))

    def scaled(self, factor: float) -> "StepModel":
        return StepModel(*(factor * value for value in self.coefficients))


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """Combined data sheet of all accelerators of one replica."""

    memory_bytes_per_second: float
    flops: float
    """Peak dense FLOP/s in the precision that the model computes in."""
    memory_bytes: int = 0
    """Memory of the accelerators in bytes. 0 for an unknown accelerator and for a CPU."""


def prior_step_model(
    hardware: HardwareClass, weight_bytes: float, parameters: float, kv_bytes_per_token: float
) -> StepModel:
    """Return the step model that the roofline predicts before any step is measured."""
    return StepModel(
        fixed=1.1 * weight_bytes / hardware.memory_bytes_per_second,
        prefill=2 * parameters / (0.5 * hardware.flops),
        sequence=2 * parameters / (0.5 * hardware.flops),
        kv=kv_bytes_per_token / hardware.memory_bytes_per_second,
    )


@dataclass(frozen=True, slots=True)
class StepModelFit:
    """The step model learned so far, and the sums from which it follows."""

    prior: StepModel
    sums: StepSums = field(default_factory=StepSums)
    units: StepModel | None = None
    """Units of the coefficients in the fit. None means the coefficients of the prior."""
    model: StepModel = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", _solve(self.prior, self.units or self.prior, self.sums))

    @classmethod
    def after(cls, learned: StepModel, guess: StepModel) -> "StepModelFit":
        """Return a fit that begins with another model, learned elsewhere or before a change of the
        engine.

        A coefficient that was learned as zero has no scale. Its unit is derived from the same
        coefficient of `guess` and the ratio of the other coefficients to those of `guess`.
        """
        pairs = list(zip(learned.coefficients, guess.coefficients, strict=True))
        ratios = [mine / guessed for mine, guessed in pairs if mine > 0]
        if not ratios:
            return cls(guess)
        least = LEAST_SHARE * median(ratios)
        units = StepModel(*(max(mine, least * guessed) for mine, guessed in pairs))
        return cls(learned, units=units)

    def learn(self, sums: StepSums, seconds: float) -> "StepModelFit":
        """Add the steps of the last `seconds`. Without steps, nothing is learned or forgotten."""
        if sums.steps < 1:
            return self
        return replace(self, sums=sums.plus(self.sums, FORGETTING_PER_SECOND**seconds))


def _solve(prior: StepModel, units: StepModel, sums: StepSums) -> StepModel:
    """Return the non-negative coefficients that fit the sums and the prior best.

    Every coefficient is a multiple of its unit, so one spread suits all four.
    """
    if sums.steps < 1 or sums.seconds <= 0:
        return prior
    scale = units.coefficients
    centre = [mine / unit for mine, unit in zip(prior.coefficients, scale, strict=True)]
    noise = (STEP_NOISE * sums.seconds / sums.steps) ** 2
    pull = PRIOR_SPREAD**-2
    terms = range(COEFFICIENTS)
    matrix = [
        [scale[i] * scale[j] * sums.moment(i, j) / noise + (pull if i == j else 0.0) for j in terms]
        for i in terms
    ]
    target = [scale[i] * sums.moment(i, SECONDS) / noise + pull * centre[i] for i in terms]
    multiples = _non_negative(matrix, target)
    return StepModel(*(scale[i] * multiples[i] for i in terms))


def _non_negative(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Minimize ½xᵀMx - tᵀx over x ≥ 0, for a positive definite M.

    All terms are first assumed to differ from zero. If the result contains a negative term, every
    subset of the terms is tried.
    """
    size = len(target)
    best: tuple[float, list[float]] = (0.0, [0.0] * size)
    for count in range(size, 0, -1):
        for free in combinations(range(size), count):
            inner = _eliminate(
                [[matrix[i][j] for j in free] for i in free], [target[i] for i in free]
            )
            if min(inner) < 0:
                continue
            value = -0.5 * sum(x * target[i] for x, i in zip(inner, free, strict=True))
            if value < best[0]:
                full = [0.0] * size
                for x, i in zip(inner, free, strict=True):
                    full[i] = x
                best = (value, full)
        if count == size and best[0] < 0:
            break
    return best[1]


def _eliminate(matrix: list[list[float]], target: list[float]) -> list[float]:
    """Solve a small positive definite system by elimination. Such a system needs no pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, target, strict=True)]
    size = len(rows)
    for i in range(size):
        for below in range(i + 1, size):
            factor = rows[below][i] / rows[i][i]
            for column in range(i, size + 1):
                rows[below][column] -= factor * rows[i][column]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution
