"""Tests of the routing benchmark's engines with a cache of blocks, its bound, and its cells."""

import numpy as np
import pytest

from routing.cells import BOUND, OURS, PEERS, Cell, Result, closed_share, serve
from routing.fleet import Service
from routing.foresight import first_token_at
from routing.ours import Ours
from routing.peers import Bound, LeastRequests
from routing.traces import Trace, agents
from scaling.engine import BLOCK_TOKENS, enqueue, matched_tokens
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
    )


class First:
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
    service = Service(agents(3).first(300).faster(30), H100, 2, 200).run(LeastRequests())
    service.advance(10_000)
    assert (service.requests.finish >= 0).all()
    assert service.fleet.kv_used.tolist() == [0, 0]
    assert service.fleet.kv_read.tolist() == [0, 0]
    assert service.fleet.queued.sum() == 0


@pytest.mark.parametrize("speed", [20.0, 60.0])
def test_foresight_knows_the_time_of_a_first_token(speed: float) -> None:
    whole = agents(4).first(200).faster(speed)
    # With a full cache, nobody knows which blocks of the queue will be evicted.
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
    cell, loaded = Cell("agents", 4, 820), agents(1).first(1500).faster(6)
    ours, other = serve(cell, Ours(), loaded), serve(cell, LeastRequests(), loaded)
    bound = serve(cell, Bound(2.0), loaded)
    assert ours.saved_percent > other.saved_percent + 5
    assert ours.attainment_percent > other.attainment_percent + 5
    assert ours.attainment_percent > bound.attainment_percent - 10


def results(ours: float, bound: float, peer: float) -> dict[str, Result]:
    found = {name: Result(0.0, 0.0) for name in PEERS}
    found["prefix tree"] = Result(peer, 0.0)
    return found | {OURS: Result(ours, 0.0), BOUND: Result(bound, 0.0)}


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
    measured, best = closed_share(results(ours, bound, peer))
    assert measured == pytest.approx(share)
    assert best == "prefix tree"
