"""Tests of the routing benchmark's engines with a cache of blocks, its bound, and its cells."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from routing.cells import Cell, serve
from routing.fleet import Policy, Service
from routing.foresight import first_token_at
from routing.gates import (
    BLOCK_REQUESTS,
    MISSING,
    NEVER_WORSE,
    SIM_TTFT,
    Interval,
    closed_share,
    interval_of,
    lost_points,
)
from routing.ours import Ours, Texts
from routing.peers import Bound, LeastRequests, LeastWork
from routing.traces import Trace, agents, documents, servegen
from scaling.engine import ARRIVALS, BLOCK_TOKENS, enqueue, matched_tokens
from scaling.hardware import H100


def trace(*prompts: list[int], every: float = 1.0, answer: int = 20) -> Trace:
    """Return one request for each list of blocks."""
    count = len(prompts)
    return Trace(
        np.arange(count) * every,
        np.array([len(each) * BLOCK_TOKENS for each in prompts]),
        np.full(count, answer),
        np.concatenate([[0], np.cumsum([len(each) for each in prompts])]).astype(np.int64),
        np.array([block for each in prompts for block in each], np.int64),
        np.zeros(count, np.int64),
    )


class First(Policy):
    """Sends every request to the first engine."""

    def choose(self, view: Service, request: int, now: float) -> int:
        return 0


def test_a_prompt_is_saved_up_to_its_first_block_that_is_not_cached() -> None:
    service = Service(trace([1, 2, 3], [1, 2, 4], [5, 6]), H100, 1, 100).run(First())
    assert service.requests.cached.tolist() == [0, 2 * BLOCK_TOKENS, 0]


def test_the_whole_prompt_is_never_saved() -> None:
    service = Service(trace([1, 2], [1, 2]), H100, 1, 100).run(First())
    assert service.requests.cached[1] == 2 * BLOCK_TOKENS - 1


def test_a_full_cache_evicts_the_end_of_the_oldest_prompt_first() -> None:
    service = Service(trace([1, 2, 3], [4, 5], [1, 2, 3]), H100, 1, 4).run(First())
    assert service.requests.cached[2] == 2 * BLOCK_TOKENS
    assert service.fleet.cached_blocks[0] == 4


def test_all_memory_is_free_after_the_last_request() -> None:
    service = Service(agents(3, 15.0).first(300), H100, 2, 200).run(LeastRequests())
    service.advance(10_000)
    assert (service.requests.finish >= 0).all()
    assert service.fleet.kv_used.tolist() == [0, 0]
    assert service.fleet.kv_read.tolist() == [0, 0]
    assert service.fleet.queued.sum() == 0


@pytest.mark.parametrize("rate", [80.0, 240.0])
def test_foresight_knows_the_time_of_a_first_token(rate: float) -> None:
    whole = agents(4, rate).first(200)
    # The cache is large, because with a full one nobody knows which blocks of the queue will be
    # evicted.
    service = Service(whole, H100, 1, 10_000)
    service.steps[:, 4] = 0
    requests, fleet = service.requests, service.fleet
    for request, now in enumerate(whole.arrival[:-1]):
        service.advance(now)
        enqueue(requests, fleet, 0, request)
    service.advance(whole.arrival[-1])
    last = len(whole.arrival) - 1
    expected = first_token_at(requests, fleet, 0, last, service.steps[0], service.limits)
    assert matched_tokens(requests, fleet, 0, last, True) > 0
    enqueue(requests, fleet, 0, last)
    service.advance(100_000)
    waited = requests.first_token[last] - whole.arrival[last]
    assert expected - whole.arrival[last] == pytest.approx(waited, rel=0.1)


def test_ours_saves_more_and_is_faster_than_least_requests_where_prefixes_repeat() -> None:
    cell, loaded = Cell("agents", 4, 820), agents(1, 32.0, seconds=100.0)
    ours, other = serve(cell, Ours(), loaded), serve(cell, LeastRequests(), loaded)
    bound = serve(cell, Bound(2.0), loaded)
    assert ours.saved_percent > other.saved_percent + 5
    assert ours.attainment_percent > other.attainment_percent + 5
    assert ours.attainment_percent > bound.attainment_percent - 10


class Holds(Policy):
    """Holds every request until a time, and then sends it to the first engine."""

    def __init__(self, until: float) -> None:
        self.until, self.numbers = until, list[int]()

    @property
    def held(self) -> int:
        return len(self.numbers)

    def choose(self, view: Service, request: int, now: float) -> int | None:
        self.numbers.append(request)
        return None

    def release(self, view: Service, now: float) -> list[tuple[int, int]]:
        if now < self.until:
            return []
        given, self.numbers = [(number, 0) for number in self.numbers], []
        return given


def test_the_time_for_which_a_request_is_held_counts() -> None:
    service = Service(trace([1], [2], every=0.1), H100, 1, 100).run(Holds(until=5.0))
    assert service.ttft == pytest.approx([5.0, 4.9], abs=0.2)
    assert not service.is_in_time.any()


def test_an_engine_that_is_not_ready_gets_nothing() -> None:
    for policy in (LeastRequests(), LeastWork(), Ours()):
        prompts = [[each] for each in range(1, 41)]
        service = Service(trace(*prompts, every=0.01), H100, 2, 100, ready_at={0: 0.2}).run(policy)
        assert service.fleet.totals[1, ARRIVALS] >= 20
        assert service.fleet.totals[0, ARRIVALS] > 0
        first = service.requests.first_token[service.requests.first_token >= 0]
        assert len(first) == 40


def test_texts_with_the_same_blocks_have_the_same_hashes_and_other_texts_have_not() -> None:
    texts = Texts(trace([1, 2, 3], [1, 2, 4], [5, 6]), 4.0, 0.3)
    chains = [list(texts.prompt(request).chain) for request in range(3)]
    shared = [each for each in chains[0] if each in chains[1]]
    assert shared == chains[0][: len(shared)]
    # Two blocks have 1,024 tokens. At 4 bytes per token, ±30 %, these are 4,096 bytes, ±30 %.
    assert 2 <= len(shared) <= 5
    assert not set(chains[2]) & set(chains[0] + chains[1])
    assert len(set(chains[0])) == len(chains[0])
    assert texts.prompt(0).size == pytest.approx(3 * 512 * 4.0, rel=0.3)


def test_an_image_has_many_bytes_for_the_same_tokens() -> None:
    texts = Texts(trace([1, 2, 3]), 4.0, 0.3)
    assert texts.prompt(0, 10.0).size == pytest.approx(10 * texts.prompt(0).size, rel=0.01)


TOOL_BLOCKS = 12 * 19
"""Largest number of blocks of all sets of tools, which have the smallest numbers."""


def gaps_within_sessions(made: Trace) -> list[float]:
    """Return the seconds between two turns that share a block which is not of a set of tools."""
    last, gaps = dict[tuple[int, ...], float](), list[float]()
    for at, first, end in zip(
        made.arrival, made.first_block[:-1], made.first_block[1:], strict=True
    ):
        blocks = tuple(made.blocks[first:end].tolist())
        own = [size for size, block in enumerate(blocks, 1) if block > TOOL_BLOCKS]
        earlier = [blocks[:size] for size in own if size < len(blocks) and blocks[:size] in last]
        if earlier:
            gaps.append(at - last.pop(earlier[-1]))
        last[blocks] = at
    return gaps


def test_more_requests_of_agents_are_more_sessions_at_the_same_pace_and_a_constant_rate() -> None:
    for rate in (8.0, 32.0):
        made = agents(1, rate, seconds=150.0)
        parts, _ = np.histogram(made.arrival, bins=3, range=(0.0, 150.0))
        assert parts / 50 == pytest.approx([rate] * 3, rel=0.25)
        gaps = gaps_within_sessions(made)
        assert len(gaps) > len(made.arrival) / 4
        assert np.quantile(gaps, (0.1, 0.5, 0.9)) == pytest.approx([4.8, 16.0, 27.2], rel=0.2)


def test_questions_about_documents_share_the_instructions_and_their_first_documents() -> None:
    made = documents(1, seconds=100.0)
    prompts = [
        made.blocks[first:end].tolist()
        for first, end in zip(made.first_block[:-1], made.first_block[1:], strict=True)
    ]
    assert {tuple(each[:2]) for each in prompts} == {(1, 2)}
    seen: dict[int, int] = {}
    for each in prompts:
        for before, block in pairwise(each):
            assert seen.setdefault(block, before) == before


def test_a_mix_of_servegen_has_the_rates_and_lengths_of_its_clients(tmp_path: Path) -> None:
    def client(rate: float, variation: float, family: str, tokens: int) -> dict[str, object]:
        quantiles = {"input_quantiles": [tokens] * 21, "output_quantiles": [7] * 21}
        return {
            "rate_cv_pattern_by_10min": [[0.0, 0.0, ""], [rate, variation, family]],
            "lengths_by_6h": {"0": quantiles},
        }

    file = tmp_path / "clients.json"
    file.write_text(
        json.dumps({"clients": [client(2.0, 1.0, "Gamma", 100), client(4.0, 2.0, "Weibull", 300)]})
    )
    made = servegen(file, slot=1, count=100_000)
    assert (made.client == np.where(made.prompt == 100, 1, 2)).all()
    assert np.sum(made.prompt == 100) == pytest.approx(1200, rel=0.1)
    assert np.sum(made.prompt == 300) == pytest.approx(2400, rel=0.2)
    gaps = np.diff(made.arrival[made.prompt == 300])
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, rel=0.25)
    assert set(made.answer.tolist()) == {7}
    assert (np.diff(made.arrival) >= 0).all()
    assert len(servegen(file, slot=1, count=50).arrival) == 50


@pytest.mark.parametrize(
    ("ours", "bound", "peer", "share"),
    [
        (80, 85, 65, 0.75),
        (65, 85, 65, 0.0),
        (60, 85, 65, -0.25),
        (90, 85, 88, 1.0),
        (87, 85, 88, 0),
    ],
)
def test_the_share_of_the_gap_is_measured_from_the_best_peer(
    ours: float, bound: float, peer: float, share: float
) -> None:
    assert closed_share(ours, bound, 10.0, peer) == pytest.approx(share)


def test_an_interval_is_narrow_where_policies_differ_on_the_same_requests() -> None:
    rng = np.random.default_rng(1)
    easy = np.repeat(rng.random(30) < 0.7, BLOCK_REQUESTS)
    better = easy.copy()
    better[::10] = True
    found = interval_of([easy, better], lost_points)
    assert found.value == pytest.approx(100 * (better.mean() - easy.mean()))
    assert found.low <= found.value <= found.high
    assert 0 < found.high - found.low < 4


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ({"a": Interval(0.9, 0.8, 0.95), "b": Interval(0.8, 0.76, 0.9)}, "PASS (b)"),
        ({"a": Interval(0.9, 0.8, 0.95), "b": Interval(0.8, 0.7, 0.9)}, "UNDECIDED (b)"),
        ({"a": Interval(0.9, 0.8, 0.95), "b": Interval(0.6, 0.5, 0.7)}, "FAIL (b)"),
        ({"a": Interval(0.9, 0.8, 0.95), "b": MISSING}, "FAIL (b)"),
        ({}, "missing >=0.75 FAIL"),
    ],
)
def test_a_gate_passes_only_where_every_cell_meets_its_limit(
    figures: dict[str, Interval], verdict: str
) -> None:
    assert SIM_TTFT.line(figures).endswith(verdict)


def test_a_loss_above_the_limit_fails_its_gate() -> None:
    assert NEVER_WORSE.line({"a": Interval(0.2, -1, 0.9)}).endswith("PASS (a)")
    assert NEVER_WORSE.line({"a": Interval(3.0, 2, 4)}).endswith("FAIL (a)")
