"""The product's router, fed as in a cluster: each replica reports once a second."""

from dataclasses import dataclass, field

import numpy as np

from llmservice_operator.routing.prompts import Prompt
from llmservice_operator.routing.router import Router
from routing.fleet import Service
from scaling.counters import snapshot_of
from scaling.engine import BLOCK_TOKENS

BYTES_PER_TOKEN = 4.3
LENGTH_NOISE = 0.3
"""Deviation of a prompt's bytes from those of its tokens, as a share."""
IMAGE_FACTOR = 10
"""Bytes of an image that is not recognized, per byte of text with as many tokens."""


@dataclass
class Ours:
    report_seconds: float = 1.0
    bytes_per_token: float = BYTES_PER_TOKEN
    image_every: int = 0
    """Every so many requests, the prompt is images: many bytes for few tokens. 0 for none."""
    router: Router | None = None
    next_report: dict[int, float] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)

    def choose(self, view: Service, request: int, now: float) -> int:
        if self.router is None:
            self.router = Router(view.hardware.prior)
            self.rng = np.random.default_rng(1)
            share = self.report_seconds / view.replicas
            self.next_report = {engine: engine * share for engine in range(view.replicas)}
            for engine in range(view.replicas):
                self._report(view, engine, now)
        self._settle(view, now)
        for engine, due in self.next_report.items():
            if now >= due:
                self._report(view, engine, now)
                self.next_report[engine] = now + self.report_seconds
        requests = view.requests
        ids = requests.blocks[requests.first_block[request] : requests.first_block[request + 1]]
        whole = ids[: requests.prompt[request] // BLOCK_TOKENS].tolist()
        chain = [2 * block + half for block in whole for half in (0, 1)]
        noise = self.rng.uniform(1 - LENGTH_NOISE, 1 + LENGTH_NOISE)
        size = int(requests.prompt[request] * self.bytes_per_token * noise)
        if self.image_every and request % self.image_every == 0:
            size *= IMAGE_FACTOR
        pick = self.router.pick(request, Prompt(chain, size), now)
        assert pick is not None
        self.open.append(request)
        return int(pick.replica)

    def _settle(self, view: Service, now: float) -> None:
        assert self.router is not None
        first, finish = view.requests.first_token, view.requests.finish
        still = []
        for each in self.open:
            if each not in self.begun and 0 <= first[each] <= now:
                self.begun.add(each)
                self.router.started(each, first[each])
            if 0 <= finish[each] <= now:
                self.router.ended(each)
            else:
                still.append(each)
        self.open = still

    def _report(self, view: Service, engine: int, now: float) -> None:
        assert self.router is not None
        report = snapshot_of(view.fleet, engine, view.hardware.limits, now, started=0.0)
        self.router.hear(str(engine), report, view.cached_blocks * BLOCK_TOKENS)
