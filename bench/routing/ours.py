"""Runs the product's router with the input that it has in a cluster: one report of each replica per
second.
"""

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit

from llmservice_operator.routing.holding import Holding, Request
from llmservice_operator.routing.prefixes import BLOCK_BYTES
from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from llmservice_operator.scaling.signals import Snapshot
from routing.fleet import Policy, Service
from routing.traces import Trace
from scaling.counters import snapshot_of
from scaling.engine import BLOCK_TOKENS, Fleet, Requests

BYTES_PER_TOKEN = 4.3
LENGTH_NOISE = 0.3
"""Largest deviation of a text's bytes per token from the mean, as a share of the mean."""
IMAGE_FACTOR = 10
"""Bytes of an unrecognized image, divided by the bytes of a text with as many tokens."""
MOST_PIECES = 1024
"""Maximum number of hashed pieces of a block."""
MOST_HELD = 100_000
"""Maximum number of held requests. It is so high that the router refuses none, because all policies
must serve the same requests."""


@njit(cache=True)
def _prompt_tokens(requests: Requests, fleet: Fleet, engine: int) -> tuple[int, int]:
    """Return the prompt tokens in an engine's queue, and the tokens that are still to be computed
    of the prompt in progress.
    """
    at, queued, left = fleet.head[engine], 0, 0
    if at >= 0 and fleet.head_admitted[engine]:
        left = requests.to_compute[at]
        at = requests.behind[at]
    while at >= 0:
        queued += requests.prompt[at]
        at = requests.behind[at]
    return queued, left


class Texts:
    """The bytes of a trace's prompts. Equal blocks have equal bytes."""

    def __init__(self, trace: Trace, bytes_per_token: float, noise_share: float) -> None:
        count = len(trace.arrival)
        noise = np.random.default_rng(1).uniform(1 - noise_share, 1 + noise_share, count)
        self.trace, self.of_request = trace, bytes_per_token * noise
        author = np.zeros(trace.different_blocks + 1, np.int64)
        lengths = np.diff(trace.first_block)
        # Assigned backwards, so that the first request with a block determines the block's text.
        author[trace.blocks[::-1]] = np.repeat(np.arange(count), lengths)[::-1]
        self.of_block = BLOCK_TOKENS * self.of_request[author]

    def prompt(self, request: int, factor: float = 1.0) -> Prompt:
        """Return what the router knows of a request's prompt.

        The prompt has `factor` times as many bytes as its text.
        """
        trace = self.trace
        tokens = int(trace.prompt[request])
        first, end = trace.first_block[request], trace.first_block[request + 1]
        whole = trace.blocks[first : min(end, first + tokens // BLOCK_TOKENS)]
        ends = np.cumsum(self.of_block[whole]) * factor
        rest = (tokens - len(whole) * BLOCK_TOKENS) * self.of_request[request] * factor
        size = (float(ends[-1]) if len(whole) else 0.0) + rest
        hashed = np.diff(ends // BLOCK_BYTES, prepend=0).astype(np.int64)
        chain = [
            int(block) * MOST_PIECES + i
            for block, pieces in zip(whole, hashed, strict=True)
            for i in range(pieces)
        ]
        return Prompt(chain, int(size), source=int(trace.client[request]))


@dataclass
class Ours(Policy):
    report_seconds: float = 1.0
    report_delay: float = 0.0
    """Age in seconds of a report when the router receives it."""
    bytes_per_token: float = BYTES_PER_TOKEN
    length_noise: float = LENGTH_NOISE
    image_every: int = 0
    """One in this many prompts consists of images: many bytes for few tokens. 0 for no such prompt.
    """
    holds: bool = True
    keyed: bool = False
    """Whether each client of the trace has an API key of its own."""
    holding: Holding | None = None
    next_report: dict[int, float] = field(default_factory=dict)
    sent: deque[tuple[int, Snapshot]] = field(default_factory=deque)
    """Sent reports that the router has not received yet, each with its engine."""
    open: list[int] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)

    @property
    def held(self) -> int:
        return len(self.holding) if self.holding is not None else 0

    def choose(self, view: Service, request: int, now: float) -> int | None:
        if self.holding is None:
            self.holding = Holding(Router(view.hardware.prior), most_requests=MOST_HELD)
            self.texts = Texts(view.trace, self.bytes_per_token, self.length_noise)
            share = self.report_seconds / view.replicas
            self.next_report = {
                engine: view.ready_at.get(engine, engine * share - self.report_seconds)
                for engine in range(view.replicas)
            }
        self._observe(view, now)
        is_image = self.image_every and request % self.image_every == 0
        prompt = self.texts.prompt(request, IMAGE_FACTOR if is_image else 1.0)
        if self.holds:
            key = str(view.trace.client[request]) if self.keyed else ""
            pick = self.holding.pick(Request(request, prompt, key=key), now)
        else:
            pick = self.holding.router.pick(request, prompt, now)
        if pick is None:
            return None
        self.open.append(request)
        return int(pick.replica)

    def release(self, view: Service, now: float) -> list[tuple[int, int]]:
        self._observe(view, now)
        assert self.holding is not None
        found = [(request.number, int(pick.replica)) for request, pick in self.holding.release(now)]
        self.open += [number for number, _ in found]
        return found

    def _observe(self, view: Service, now: float) -> None:
        """Tell the router which requests have started and which have ended, and give it the reports
        that are due.
        """
        assert self.holding is not None
        router = self.holding.router
        numbers = np.array(self.open, np.int64)
        first = view.requests.first_token[numbers]
        finish = view.requests.finish[numbers]
        for each in numbers[(first >= 0) & (first <= now)].tolist():
            if each not in self.begun:
                self.begun.add(each)
                router.started(each, float(view.requests.first_token[each]))
        is_done = (finish >= 0) & (finish <= now)
        for each in numbers[is_done].tolist():
            router.ended(each, float(view.requests.finish[each]))
        self.open = numbers[~is_done].tolist()
        for engine, due in self.next_report.items():
            if now >= due:
                self.sent.append((engine, self._report(view, engine, now)))
                self.next_report[engine] = now + self.report_seconds
        while self.sent and self.sent[0][1].at + self.report_delay <= now:
            engine, report = self.sent.popleft()
            router.hear(str(engine), report, view.cached_blocks * BLOCK_TOKENS)

    def _report(self, view: Service, engine: int, now: float) -> Snapshot:
        started = view.ready_at.get(engine, 0.0)
        report = snapshot_of(view.fleet, engine, view.hardware.limits, now, started)
        computed = int(view.fleet.head_admitted[engine])
        queued, left = _prompt_tokens(view.requests, view.fleet, engine)
        return replace(
            report,
            running=report.running + computed,
            waiting=report.waiting - computed,
            queued_prompt_tokens=queued,
            left_prompt_tokens=queued + left,
        )
