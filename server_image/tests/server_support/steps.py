"""vLLM's statistics of a step, as far as the server reads them, with values that a test sets."""

from dataclasses import dataclass, field

from llmservice_server.engine_usage import EngineLimits, EngineUsage, Objectives


class Engine:
    """A clock and a number of unfinished requests, both of which the test sets."""

    def __init__(self, objectives: Objectives | None = None) -> None:
        self.seconds = 100.0
        self.unfinished = 0
        self.prompts: list[int] = []
        """Prompt lengths of the sequences without a first token."""
        self.usage = EngineUsage(objectives or Objectives(), lambda: self.seconds, lambda: 1e9)
        self.usage.limits = EngineLimits(16, 2048, 1000)
        self.usage.unfinished = lambda: self.unfinished
        self.usage.prompts = lambda: self.prompts

    def arrive(self, tokens: int, sequences: int = 1) -> None:
        self.unfinished += sequences
        self.prompts += [tokens] * sequences
        self.usage.arrive(tokens, sequences)


@dataclass
class Prompt:
    computed: int = 0
    cached_tokens: int = 0


@dataclass
class Finished:
    finish_reason: str = "length"
    num_generation_tokens: int = 5
    e2e_latency: float = 1.0
    decode_time: float = 0.5
    mean_time_per_output_token: float = 0.1
    request_id: str = "request"
    num_prompt_tokens: int = 4


@dataclass
class Iteration:
    prompt_token_stats: Prompt = field(default_factory=Prompt)
    num_generation_tokens: int = 0
    inter_token_latencies_iter: list[float] = field(default_factory=list)
    time_to_first_tokens_iter: list[float] = field(default_factory=list)
    finished_requests: list[Finished] = field(default_factory=list)


@dataclass
class Found:
    """Prompt tokens found in the cache for the sequences that begin in a step."""

    hits: int = 0


@dataclass
class StepDetails:
    num_ctx_tokens: int
    num_generation_requests: int


@dataclass
class Scheduler:
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    kv_cache_usage: float = 0.0
    iteration_details: StepDetails | None = None
    prefix_cache_stats: Found = field(default_factory=Found)
