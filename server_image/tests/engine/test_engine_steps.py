"""Tests the reports of the real engine's steps, from which the autoscaler learns."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

BUDGET = 64
"""Maximum number of tokens of one step."""
QUEUE = 32
"""Maximum number of unfinished sequences. It is eight times the number that is computed at once."""
PROMPT = "one " * 170
LOGS_STEPS = "--enable-logging-iteration-details"


@pytest.fixture(scope="module", params=["", LOGS_STEPS])
def server(
    request: pytest.FixtureRequest,
    preloaded: Preloaded,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    """Server with a small token budget: first one that logs no steps, then one that logs them."""
    more = [f"--max-num-batched-tokens={BUDGET}", "--max-num-seqs=4", request.param]
    flags = [*flags_for(tiny_model), *filter(None, more)]
    with running_server(preloaded, tmp_path_factory.mktemp("steps"), *flags) as started:
        started.wait_until_ready()
        yield started


def moments(server: ModelServer) -> list[float]:
    found: list[float] = server.counters()["steps"]["moments"]
    return found


def arrived(server: ModelServer) -> tuple[int, int]:
    """Return the number of arrived sequences, and how many of them have a known prompt length."""
    counted = server.counters()
    return counted["arrivals"], sum(counted["promptLengths"])


def test_a_prompt_longer_than_a_step_counts_in_every_step_that_computes_it(
    server: ModelServer, request: pytest.FixtureRequest
) -> None:
    before = moments(server)
    reply = server.post("/generate", {"prompt": PROMPT, "max_tokens": 3, "ignore_eos": True})
    tokens = reply.json()["usage"]["prompt_tokens"]
    assert 2 * BUDGET < tokens < 3 * BUDGET
    steps, prefill, sequences, _, seconds, squares = (
        after - first for after, first in zip(moments(server)[:6], before[:6], strict=True)
    )

    # The first step followed an idle time, so its duration is unknown and it is left out. Two more
    # steps compute the prompt, and two steps compute the tokens after the first.
    assert (steps, prefill, sequences) == (4, tokens - BUDGET, 2)
    assert squares == BUDGET**2 + (tokens - 2 * BUDGET) ** 2
    assert seconds > 0
    logs_steps = request.node.callspec.params["server"] == LOGS_STEPS
    assert ("context tokens" in server.log.read_text()) is logs_steps


@contextmanager
def full_queue(
    server: ModelServer, path: str, wanted: dict[str, object]
) -> Iterator[tuple[int, int]]:
    """Fill the queue with the sequences of one request; then yield the result of `arrived`."""
    before = arrived(server)
    filling = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=60)
    filling.request("POST", path, json.dumps({**wanted, "n": QUEUE}), server.headers)
    server.eventually(lambda: arrived(server)[0] == before[0] + QUEUE, seconds=10)
    yield arrived(server)
    filling.close()
    server.eventually(lambda: server.probe("/autoscale").json()["waiting"] == 0, seconds=20)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
    ],
)
def test_what_a_full_queue_turns_away_arrives_like_what_it_takes(
    server: ModelServer, path: str, asked: dict[str, object]
) -> None:
    wanted = {"model": SERVED_NAME, "max_tokens": 400, "ignore_eos": True, **asked}
    with full_queue(server, path, wanted) as before:
        refused = [server.post(path, {**wanted, "n": 2}).status for _ in range(3)]
        after = arrived(server)

    assert refused == [503] * 3
    assert after == (before[0] + 6, before[1] + 6)


def test_what_is_turned_away_once_its_prompt_is_read_arrives_once(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "max_tokens": 400, "ignore_eos": True, "prompt": "Hello"}
    many = {**wanted, "prompt": ["Hello"] * (QUEUE + 1)}
    with full_queue(server, "/v1/completions", wanted) as before:
        status = server.post("/v1/completions", many).status
        after = arrived(server)

    assert status == 503
    assert after == (before[0] + QUEUE + 1, before[1] + QUEUE + 1)


def test_a_request_that_a_router_sends_to_two_replicas_arrives_once(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "max_tokens": 400, "ignore_eos": True, "prompt": "Hello"}
    seen = []
    with full_queue(server, "/v1/completions", wanted) as before:
        for attempt in ("1", "2"):
            headers = {**server.headers, "x-llm-router-attempt": attempt}
            reply = server.request("POST", "/v1/completions", wanted, headers=headers)
            assert (reply.status, reply.headers["x-llm-retry"]) == (503, "other-replica")
            seen.append(arrived(server)[0] - before[0])
    assert seen == [0, 1]
