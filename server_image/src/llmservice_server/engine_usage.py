"""Counts the engine's work for `GET /autoscale`, and reports it with the engine's current state.

Counters only grow while the process runs, so a missed scrape loses no data. The engine calls
`record` once per step, so `record` never waits, allocates little and accepts missing statistics.
"""

import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from llmservice_server.key_usage import KeyUsage
from llmservice_server.prompt_progress import PromptProgress

LENGTH_BUCKETS = 21
"""Number of buckets for lengths in tokens. Bucket i counts lengths in (2**(i-1), 2**i]. The last
bucket also counts all greater lengths."""

LATENCY_BUCKETS = 73
"""Number of buckets for latencies. Bucket i counts latencies in (2**((i-1)/4), 2**(i/4)]
milliseconds. The last bucket also counts all longer latencies."""

STEP_TERMS = 5
"""Number of terms in the vector of an engine step: (1, prefill tokens, sequences, KV tokens read,
seconds)."""

_KNOWN_PROMPTS = 1000
"""Number of recent prompts whose lengths are kept, to estimate the prompt lengths of refused
requests."""

_QUIET_SECONDS = 60.0
"""Time in seconds without requests after which a suspected hang is discarded.

The suspicion remains after the requests that caused it have ended. Otherwise, clients that give up
and retry before the hang is certain would hide the hang.
"""


@dataclass(frozen=True)
class Objectives:
    """Service level objectives for finished requests, in seconds; None sets no objective."""

    ttft: float | None = None
    itl: float | None = None


@dataclass(frozen=True)
class EngineLimits:
    """Limits of each engine, and the number of engines."""

    max_sequences: int = 0
    max_step_tokens: int = 0
    kv_capacity_tokens: float = 0
    engines: int = 1
    """Number of engines. It exceeds 1 only with data parallelism."""
    pipeline_stages: int = 1
    """Number of batches that each engine computes at the same time, one in each stage of the
    pipeline. A sequence is in one of them."""


@dataclass
class Counters:
    """Cumulative work of the engine since the server became ready."""

    arrivals: int = 0
    """Number of requested sequences: those accepted and those refused for lack of room."""
    prompt_tokens_arrived: int = 0
    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    generated_tokens: int = 0
    decoded_tokens: int = 0
    """Number of tokens that the sequences in `steps` generated. With speculative decoding, a
    sequence can generate more than one token per step."""
    finished: int = 0
    judged: int = 0
    """Number of finished requests to which the objectives were applied; 0 without an objective."""
    ttft_met: int = 0
    itl_met: int = 0
    slo_met: int = 0
    prompt_lengths: list[int] = field(default_factory=lambda: [0] * LENGTH_BUCKETS)
    answer_lengths: list[int] = field(default_factory=lambda: [0] * LENGTH_BUCKETS)
    answer_tokens: int = 0
    ttft_milliseconds: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    itl_milliseconds: list[int] = field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    """Histogram of the mean inter-token latency of each request with more than one token."""
    steps: list[float] = field(default_factory=lambda: [0.0] * (STEP_TERMS * (STEP_TERMS + 1) // 2))
    """Upper triangle, by row, of the sum of x·xᵀ, where x is the vector of terms of a step.

    Least squares needs only this sum. Steps of unknown duration, such as the first step after an
    idle time, are left out.
    """

    def arrive(self, prompt_tokens: int) -> None:
        """Count a requested sequence."""
        self.arrivals += 1
        self.prompt_tokens_arrived += prompt_tokens
        self.prompt_lengths[_bucket(prompt_tokens)] += 1

    def step(self, prefill: int, sequences: int, kv_tokens: float, seconds: float) -> None:
        """Add one step of the engine to the sums."""
        terms = (1.0, float(prefill), float(sequences), kv_tokens, seconds)
        index = 0
        for row, first in enumerate(terms):
            for second in terms[row:]:
                self.steps[index] += first * second
                index += 1

    def finish(self, request: Any, objectives: Objectives) -> None:
        """Count a finished request, given vLLM's statistics of the request."""
        tokens = int(getattr(request, "num_generation_tokens", 0))
        self.finished += 1
        self.answer_tokens += tokens
        self.answer_lengths[_bucket(tokens)] += 1
        if str(request.finish_reason) in ("abort", "error"):
            return
        # TTFT is measured from the arrival at the API, so it includes the time in the queue.
        ttft, itl = request.e2e_latency - request.decode_time, request.mean_time_per_output_token
        self.ttft_milliseconds[_latency_bucket(ttft)] += 1
        if tokens > 1:
            self.itl_milliseconds[_latency_bucket(itl)] += 1
        if objectives == Objectives():
            return
        ttft_met = objectives.ttft is None or ttft <= objectives.ttft
        itl_met = objectives.itl is None or itl <= objectives.itl
        self.judged += 1
        self.ttft_met += ttft_met
        self.itl_met += itl_met
        self.slo_met += ttft_met and itl_met


@dataclass
class _Engine:
    """State of one engine after its last step."""

    running: int = 0
    kv_tokens: float = 0.0
    next_began: float | None = None
    """Start time of the engine's next step; None if the engine had no work."""
    progress: PromptProgress = field(default_factory=PromptProgress)


class EngineUsage:
    """Counters that the engines update, and the report that is made from them."""

    def __init__(
        self,
        objectives: Objectives,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.objectives = objectives
        self._clock = clock
        self._started = now()
        self.limits = EngineLimits()
        self.unfinished: Callable[[], int] = lambda: 0
        """Returns the number of sequences that the engine has accepted but not finished."""
        self.prompts: Callable[[], Iterable[int]] = lambda: ()
        """Returns the prompt length of each sequence that has no token yet, oldest sequence
        first."""
        self.gpu_duty_cycle_percent: Callable[[], float | None] = lambda: None
        """Returns the mean duty cycle of the GPUs; None without GPUs or without a reading. The call
        may take long."""
        self.adapters: Callable[[], list[dict[str, object]] | None] = lambda: None
        """Returns the state of each LoRA adapter; None if the server serves no adapters."""
        self.counters = Counters()
        self.keys = KeyUsage()
        self._engines: defaultdict[int, _Engine] = defaultdict(_Engine)
        self._known_lengths: deque[int] = deque(maxlen=_KNOWN_PROMPTS)
        self._last_arrival = clock()
        self._waiting_since: float | None = None

    def begin(self) -> None:
        """Drop the counters of the server's own requests, because no client sent them.

        The steps of these requests were not recorded. Without this call, these requests would still
        appear to be waiting.
        """
        self.counters = Counters()
        self._waiting_since = None
        self._known_lengths.clear()

    def arrive(self, prompt_tokens: int, sequences: int) -> None:
        """Count a request that the engine has accepted."""
        for _ in range(sequences):
            self.counters.arrive(prompt_tokens)
            self._known_lengths.append(prompt_tokens)
        now, unfinished = self._clock(), self.unfinished()
        is_alone = unfinished <= sequences
        is_forgotten = is_alone and now - self._last_arrival > _QUIET_SECONDS
        if unfinished and (self._waiting_since is None or is_forgotten):
            self._waiting_since = now
        self._last_arrival = now

    def turn_away(self, sequences: int) -> None:
        """Count sequences that were refused for lack of room, because they are demand, too.

        Their prompts may not have been read, so each sequence is counted with the length of a
        random recent prompt, if there is one. This adds to the load without changing the mean
        prompt length.
        """
        for _ in range(sequences):
            if self._known_lengths:
                self.counters.arrive(random.choice(self._known_lengths))
            else:
                self.counters.arrivals += 1

    def record(self, scheduler: Any | None, iteration: Any | None, engine: int = 0) -> None:
        """Add vLLM's statistics of an engine's step; `scheduler` or `iteration` may be None."""
        now, state = self._clock(), self._engines[engine]
        prefill, decoded, gaps, completed, begun_to_decode = 0, 0, (), 0, 0
        if iteration is not None:
            prompt = iteration.prompt_token_stats
            prefill = prompt.computed
            completed = prefill + prompt.cached_tokens
            self.counters.prompt_tokens_computed += prefill
            self.counters.prompt_tokens_cached += prompt.cached_tokens
            self.counters.generated_tokens += iteration.num_generation_tokens
            gaps = iteration.inter_token_latencies_iter
            first_tokens = len(iteration.time_to_first_tokens_iter)
            decoded = iteration.num_generation_tokens - first_tokens
            for request in iteration.finished_requests:
                self.counters.finish(request, self.objectives)
                self.keys.finish(request)
            begun_to_decode = first_tokens - len(iteration.finished_requests)
        sequences = len(gaps)
        if details := getattr(scheduler, "iteration_details", None):
            # The statistics of a prompt come with its first token. If a prompt is long, or if its
            # first step is nearly full, it takes several steps. Only the details show its tokens in
            # each step.
            prefill, sequences = details.num_ctx_tokens, details.num_generation_requests
        state.progress.step(prefill, _found_in_cache(scheduler), completed)
        if scheduler is not None and scheduler.num_running_reqs <= sequences + begun_to_decode:
            # Every running sequence has its first token, so no prompt is in progress.
            state.progress.clear()
        stages = self.limits.pipeline_stages
        # With several batches in progress, a step begins long before the previous one ends.
        seconds = _step_seconds(gaps, state.next_began if stages == 1 else None, now)
        # Sequences without a new token are being recomputed after they lost their KV cache. A step
        # with only such sequences is left out.
        if (prefill or gaps) and seconds is not None:
            read = state.kv_tokens / stages if sequences else 0.0
            self.counters.step(prefill, sequences, read, seconds)
            self.counters.decoded_tokens += decoded
        state.next_began = None
        if scheduler is not None:
            state.running = scheduler.num_running_reqs
            state.kv_tokens = scheduler.kv_cache_usage * self.limits.kv_capacity_tokens
            if state.running or scheduler.num_waiting_reqs:
                state.next_began = now
        self._waiting_since = now if self.unfinished() else None

    def stalled_seconds(self) -> float:
        """Return the time in seconds that work has waited for an engine step; 0 without work."""
        if not self.unfinished():
            return 0.0
        # One of several engines may hang while the others continue.
        waits = [self._waiting_since, *(engine.next_began for engine in self._engines.values())]
        now = self._clock()
        return now - min((since for since in waits if since is not None), default=now)

    def waiting(self) -> int:
        """Return the number of sequences that wait for the engine, as of its last step."""
        return max(0, self.unfinished() - sum(each.running for each in self._engines.values()))

    def _prompt_tokens(self) -> tuple[int, int]:
        """Return the prompt tokens of waiting sequences, and all prompt tokens yet to be computed.

        The newest sequences wait, because the engine begins with the oldest.
        """
        lengths = list(self.prompts())
        begun = max(0, len(lengths) - self.waiting())
        queued = sum(lengths[begun:])
        done = sum(engine.progress.tokens for engine in self._engines.values())
        return queued, queued + max(0, sum(lengths[:begun]) - done)

    def report(self) -> dict[str, object]:
        """Return the part of the body of /autoscale that comes from the engine."""
        engines = list(self._engines.values())
        running = sum(engine.running for engine in engines)
        queued, left = self._prompt_tokens()
        adapters = self.adapters()
        return {
            "started": self._started,
            "counters": _camel_case({**asdict(self.counters), "steps": {}})
            | {"steps": {"moments": list(self.counters.steps)}},
            "running": running,
            "waiting": self.waiting(),
            "queuedPromptTokens": queued,
            "leftPromptTokens": left,
            "kvTokens": sum(engine.kv_tokens for engine in engines),
            "kvCapacityTokens": self.limits.engines * self.limits.kv_capacity_tokens,
            "engines": self.limits.engines,
            "pipelineStages": self.limits.pipeline_stages,
            "maxSequences": self.limits.max_sequences,
            "maxStepTokens": self.limits.max_step_tokens,
            "keys": self.keys.report(),
            **({} if adapters is None else {"adapters": adapters}),
        }


def _found_in_cache(scheduler: Any | None) -> int:
    """Return the number of prompt tokens found in a cache for sequences that have just begun.

    These are the sequences that began after the previous step.
    """
    local = getattr(scheduler, "prefix_cache_stats", None)
    connected = getattr(scheduler, "connector_prefix_cache_stats", None)
    return sum(stats.hits for stats in (local, connected) if stats is not None)


def _step_seconds(gaps: Any, began: float | None, now: float) -> float | None:
    """Return the duration of a step in seconds; None if it is unknown.

    A decoding sequence gets a token in every step, so the shortest gap between two tokens is the
    duration as measured by the engine's own clock. A step that only computes prompts began when the
    previous step ended. The first step after an idle time began at an unknown time after its
    request arrived.
    """
    if gaps:
        return float(min(gaps))
    return None if began is None else now - began


def _bucket(tokens: int) -> int:
    return min((max(tokens, 1) - 1).bit_length(), LENGTH_BUCKETS - 1)


def _latency_bucket(seconds: float) -> int:
    milliseconds = max(1000 * seconds, 1.0)
    return min(math.ceil(4 * math.log2(milliseconds)), LATENCY_BUCKETS - 1)


def _camel_case(values: dict[str, object]) -> dict[str, object]:
    """Return the same values under camelCase names, which Kubernetes uses in JSON."""
    return {
        first + "".join(word.title() for word in rest): value
        for name, value in values.items()
        for first, *rest in [name.split("_")]
    }
