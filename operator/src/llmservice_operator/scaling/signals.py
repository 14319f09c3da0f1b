"""The report of one model server at `GET :9090/autoscale`, and the difference of two reports.

Counters are cumulative since the process started, so a lost report loses nothing.
"""

from dataclasses import dataclass, field
from typing import Final

from llmservice_operator.api.calibration import LENGTH_BUCKETS
from llmservice_operator.scaling.sums import Sums

STEP_TERMS = 5
"""Number of terms of an engine step: (1, prefill tokens, sequences, KV tokens read, seconds)."""

STEP_MOMENTS = STEP_TERMS * (STEP_TERMS + 1) // 2

NO_LENGTHS = (0.0,) * LENGTH_BUCKETS
"""Bucket i of a length histogram counts lengths in (2**(i-1), 2**i]. The last bucket also counts
all longer lengths."""

ADDED_LATER: Final = {"is_optional": True}
"""Metadata of a counter that not every server reports. A missing counter is zero."""


@dataclass(frozen=True, slots=True)
class StepSums(Sums):
    """For every product of two step terms, its sum over engine steps. Least squares needs nothing
    else.

    `moments` is the upper triangle of the sum of x·xᵀ, row by row, with x = (1, prefill tokens,
    sequences that decode, KV tokens read, seconds).
    """

    moments: tuple[float, ...] = (0.0,) * STEP_MOMENTS

    def __post_init__(self) -> None:
        if len(self.moments) != STEP_MOMENTS:
            raise ValueError(f"step sums are {STEP_MOMENTS} numbers, not {len(self.moments)}")

    def moment(self, i: int, j: int) -> float:
        """Return the sum over steps of term i times term j."""
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

    @property
    def sequence_seconds(self) -> float:
        """Total seconds for which sequences decoded."""
        return self.moment(2, 4)


@dataclass(frozen=True, slots=True)
class Flow(Sums):
    """Arrivals and work, from which the demand follows."""

    arrivals: float = 0
    """Requests that arrived, including those that have not started."""
    prompt_tokens_arrived: float = 0
    prompt_tokens_computed: float = 0
    generated_tokens: float = 0
    prompt_tokens_cached: float = 0
    """Prompt tokens that the prefix cache saved."""

    @property
    def computed_share(self) -> float:
        """Share of the prompt tokens that the prefix cache does not save."""
        prompts = self.prompt_tokens_computed + self.prompt_tokens_cached
        return self.prompt_tokens_computed / prompts if prompts > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Tally(Flow):
    """A flow, and the number of its requests that met the SLO."""

    judged: float = 0
    """Finished requests to which the SLO was applied."""
    slo_met: float = 0
    """Judged requests that met both TTFT and ITL."""


@dataclass(frozen=True, slots=True)
class Counters(Tally):
    """Counters of a model server since its process started.

    Each field has the name of a counter in the body of `GET /autoscale`.
    """

    decoded_tokens: float = field(default=0, metadata=ADDED_LATER)
    """Tokens that the sequences in `steps` generated. The first token of an answer is not included,
    because a step that computes the prompt gives it."""
    finished: float = 0
    ttft_met: float = 0
    itl_met: float = 0
    prompt_lengths: tuple[float, ...] = NO_LENGTHS
    """Histogram of the prompts that arrived."""
    answer_lengths: tuple[float, ...] = NO_LENGTHS
    """Histogram of the answers that finished."""
    answer_tokens: float = 0
    """Sum of the lengths in `answer_lengths`."""
    steps: StepSums = field(default_factory=StepSums)

    def since(self, before: "Counters") -> "Counters":
        """Return the amounts counted after `before`.

        A counter that fell shows that the process restarted. In that case, return all amounts.
        """
        difference = self.plus(before, -1.0)
        return self if difference.went_backwards else difference

    @property
    def went_backwards(self) -> bool:
        """Whether a counter of this difference is negative, which shows that the two reports come
        from different processes.
        """
        least: float = min(*Tally.of(self).amounts, self.finished, self.steps.steps)
        return least < 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One report of one model server."""

    at: float
    """Time of the report, in seconds of the scraper's clock."""
    started: float
    """Start time of the process. A different value means a different process, whose counters began
    at 0."""
    counters: Counters
    running: int
    waiting: int
    kv_tokens: float
    kv_capacity_tokens: float
    max_sequences: int
    """Maximum number of sequences that one engine computes at a time."""
    max_step_tokens: int
    """Each engine's token budget of one step (max_num_batched_tokens)."""
    engines: int = 1
    """Number of engines. With data parallelism, a replica has several engines with separate
    steps."""
    queued_prompt_tokens: float | None = None
    """Prompt tokens of the requests in `waiting`. None if the server does not report them."""
    left_prompt_tokens: float | None = None
    """`queued_prompt_tokens`, plus the tokens still to be computed in the prompts that the engines
    have begun. None if the server does not report them."""
    pipeline_stages: int = 1
    """Number of batches that each engine computes at the same time. With pipeline parallelism,
    each stage computes another batch, and a sequence is in one batch."""

    def since(self, before: "Snapshot") -> Counters:
        """Return the amounts counted after `before`, an earlier report of the same model server."""
        if self.started != before.started:
            return self.counters
        return self.counters.since(before.counters)

    def has_arrivals_since(self, before: "Snapshot") -> bool:
        """Return whether a request arrived after `before`. It is faster than `since`."""
        if self.started != before.started:
            return self.counters.arrivals > 0
        return self.counters.arrivals != before.counters.arrivals


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """One replica of the service as one scrape saw it."""

    name: str
    created: float
    is_ready: bool
    ready_at: float | None
    """Time when the replica became Ready. None while it is not Ready."""
    is_draining: bool
    snapshot: Snapshot | None
    """Report of the replica. None when the scrape failed."""
    scheduled_at: float | None = None
    """Time when the last of its pods got a node. None if a pod has none, or if the time is
    unknown."""
    is_loading_adapter: bool = False
    """Whether the replica loads a LoRA adapter."""


@dataclass(frozen=True, slots=True)
class HoldCounters(Sums):
    """Counters of the requests that waited in a router, since its process started."""

    arrived: float = 0
    """Requests that began to wait."""
    released: float = 0
    timed_out: float = 0
    """Requests that waited for the whole hold timeout."""
    refused: float = 0
    """Requests that could not wait, because too many others did. They are not in `arrived`."""


@dataclass(frozen=True, slots=True)
class RouterSnapshot:
    """One report of one router pod."""

    at: float
    """Time of the report, in seconds of the scraper's clock."""
    held: int
    """Requests that wait in the router, so that no replica has counted them yet."""
    started: float = 0.0
    """Start time of the process. A different value means a different process, whose counters began
    at 0."""
    counters: HoldCounters | None = None
    """None from a router that does not report them, or does not know them now."""
    can_be_watched: bool = False
    """Whether the router can tell of the next request that waits, so that the request wakes the
    service."""


@dataclass(frozen=True, slots=True)
class RouterPod:
    """One router pod of the service as one scrape saw it."""

    name: str
    """Identifies the pod from one start of its container to the next."""
    snapshot: RouterSnapshot | None
    """None when the pod did not report."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """All replicas and router pods of one service at one time."""

    at: float
    replicas: tuple[ReplicaReport, ...]
    routers: tuple[RouterPod, ...] = ()
