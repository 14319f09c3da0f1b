"""What the autoscaler learns of the real engine's steps."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_support import ModelServer, flags_for, running_server
from preloaded_support import Preloaded

BUDGET = 64
"""Tokens that one step takes."""
PROMPT = "one " * 170
LOGS_STEPS = "--enable-logging-iteration-details"


@pytest.fixture(scope="module", params=["", LOGS_STEPS])
def server(
    request: pytest.FixtureRequest,
    preloaded: Preloaded,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ModelServer]:
    """A server with a small budget; the second one's owner wants a line for every step."""
    more = [f"--max-num-batched-tokens={BUDGET}", "--max-num-seqs=4", request.param]
    flags = [*flags_for(tiny_model), *filter(None, more)]
    with running_server(preloaded, tmp_path_factory.mktemp("steps"), *flags) as started:
        started.wait_until_ready()
        yield started


def moments(server: ModelServer) -> list[float]:
    found: list[float] = server.probe("/autoscale").json()["counters"]["steps"]["moments"]
    return found


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

    # The first step ended a silence, so nobody knows how long it took. Two more of the prompt
    # follow, and one for each token after the first.
    assert (steps, prefill, sequences) == (4, tokens - BUDGET, 2)
    assert squares == BUDGET**2 + (tokens - 2 * BUDGET) ** 2
    assert seconds > 0
    logs_steps = request.node.callspec.params["server"] == LOGS_STEPS
    assert ("context tokens" in server.log.read_text()) is logs_steps
