"""What one model server reports at `GET :9090/autoscale`, and the difference of two reports.

Counters are cumulative since the process started, so a lost report loses nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

LENGTH_BUCKETS = 21
"""Bucket i of a length histogram counts lengths in (2**(i-1), 2**i]; the last holds the rest."""

STEP_TERMS = 5
"""An engine step is the vector (1, prefill tokens, sequences, KV tokens read, seconds)."""

STEP_MOMENTS = STEP_TERMS * (STEP_TERMS + 1) // 2


def bucket_of(tokens: int) -> int:
    """The histogram bucket of a length of this many tokens."""
    return min((max(tokens, 1) - 1).bit_length(), LENGTH_BUCKETS - 1)


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over engine steps of every product of two step terms: all that least squares needs.

    The upper triangle of the sum of x·xᵀ, row by row, x = (1, prefill tokens, sequences that
    decode, KV tokens read, seconds).
    """

    moments: tuple[float, ...] = (0.0,) * STEP_MOMENTS

    def __post_init__(self) -> None:
        if len(self.moments) != STEP_MOMENTS:
            raise ValueError(f"step sums are {STEP_MOMENTS} numbers, not {len(self.moments)}")

    def moment(self, i: int, j: int) -> float:
        """Sum over steps of term i times term j."""
        low, high = min(i, j), max(i, j)
        return self.moments[low * STEP_TERMS - low * (low - 1) // 2 + high - low]

    @property
    def steps(self) -> float:
        return self.moments[0]

    @property
    def sequences(self) -> float:
        return self.moments[2]

    @property
    def kv_tokens(self) -> float:
        return self.moments[3]

    @property
    def seconds(self) -> float:
        return self.moments[4]

    def plus(self, other: Self, weight: float = 1.0) -> "StepSums":
        pairs = zip(self.moments, other.moments, strict=True)
        return StepSums(tuple(mine + weight * theirs for mine, theirs in pairs))

    def times(self, weight: float) -> "StepSums":
        return StepSums(tuple(weight * value for value in self.moments))


@dataclass(frozen=True, slots=True)
class Counters:
    """What a model server has done since its process started."""

    arrivals: float = 0
    """Requests that came in, whether started or not."""
    prompt_tokens_arrived: float = 0
    prompt_tokens_computed: float = 0
    prompt_tokens_cached: float = 0
    """Prompt tokens that the prefix cache saved."""
    generated_tokens: float = 0
    decoded_tokens: float = 0
    """Tokens of the sequences that `steps` counts; those of a prompt's own step are not in it."""
    finished: float = 0
    judged: float = 0
    """Finished requests that the SLO was applied to."""
    ttft_met: float = 0
    itl_met: float = 0
    slo_met: float = 0
    """Judged requests that met both TTFT and ITL."""
    prompt_lengths: tuple[float, ...] = (0.0,) * LENGTH_BUCKETS
    """Histogram of the prompts that arrived."""
    answer_lengths: tuple[float, ...] = (0.0,) * LENGTH_BUCKETS
    """Histogram of the answers that finished."""
    answer_tokens: float = 0
    """Sum of the lengths in `answer_lengths`."""
    steps: StepSums = field(default_factory=StepSums)

    def since(self, before: "Counters") -> "Counters":
        """What happened after `before`; all of it when a counter went backwards (a restart)."""
        difference = self.plus(before, -1.0)
        return self if difference.has_negative else difference

    def plus(self, other: "Counters", weight: float = 1.0) -> "Counters":
        return Counters(
            self.arrivals + weight * other.arrivals,
            self.prompt_tokens_arrived + weight * other.prompt_tokens_arrived,
            self.prompt_tokens_computed + weight * other.prompt_tokens_computed,
            self.prompt_tokens_cached + weight * other.prompt_tokens_cached,
            self.generated_tokens + weight * other.generated_tokens,
            self.decoded_tokens + weight * other.decoded_tokens,
            self.finished + weight * other.finished,
            self.judged + weight * other.judged,
            self.ttft_met + weight * other.ttft_met,
            self.itl_met + weight * other.itl_met,
            self.slo_met + weight * other.slo_met,
            _weighted(self.prompt_lengths, other.prompt_lengths, weight),
            _weighted(self.answer_lengths, other.answer_lengths, weight),
            self.answer_tokens + weight * other.answer_tokens,
            self.steps.plus(other.steps, weight),
        )

    def times(self, weight: float) -> "Counters":
        return Counters().plus(self, weight)

    @property
    def has_negative(self) -> bool:
        least = min(
            self.arrivals,
            self.prompt_tokens_arrived,
            self.prompt_tokens_computed,
            self.generated_tokens,
            self.finished,
            self.judged,
            self.steps.steps,
        )
        return least < 0


def _weighted(mine: Sequence[float], theirs: Sequence[float], weight: float) -> tuple[float, ...]:
    return tuple(a + weight * b for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One report of one model server."""

    at: float
    """When it was taken, in seconds of the scraper's clock."""
    started: float
    """When the process started: another value is another process, and its counters begin at 0."""
    counters: Counters
    running: int
    waiting: int
    kv_tokens: float
    kv_capacity_tokens: float
    max_sequences: int
    """Of each engine."""
    max_step_tokens: int
    """Each engine's token budget of one step (max_num_batched_tokens)."""
    engines: int = 1
    """With data parallelism a replica has several, each with steps of its own."""

    def since(self, before: "Snapshot") -> Counters:
        """What the replica did after `before`."""
        if self.started != before.started:
            return self.counters
        return self.counters.since(before.counters)


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One pod of the service as one scrape saw it."""

    name: str
    created: float
    is_ready: bool
    ready_at: float | None
    """When it became Ready; None while it never was."""
    is_draining: bool
    snapshot: Snapshot | None
    """None when the scrape failed."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """All pods of one service at one time."""

    at: float
    replicas: tuple[ReplicaReport, ...]
    held_requests: int = 0
    """Requests that wait in front of the replicas, in a gateway."""
