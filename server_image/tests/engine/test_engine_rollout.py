"""Tests repeated rollouts, in which each server gets SIGTERM at a random moment under load."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_support.engine import flags_for, running_server
from server_support.preloaded import Preloaded
from server_support.rollout import KeepAliveClient, Tally

ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "3"))


@pytest.fixture(scope="module")
def together() -> Iterator[Tally]:
    """Results of the clients of all rounds. The fixture prints them at the end."""
    tally = Tally()
    yield tally
    print(f"\n{ROUNDS} rollouts: {tally}")


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_rollout_cuts_nobody(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path, together: Tally, seed: int
) -> None:
    chance = random.Random(seed)
    settings = {"LLMSERVICE_PRE_STOP_SECONDS": str(chance.choice((0.0, 0.5, 1.5)))}
    with running_server(preloaded, tmp_path, *flags_for(tiny_model), **settings) as server:
        server.wait_until_ready()
        tally = Tally()
        clients = [
            KeepAliveClient(server, tally, stream, seed * 100 + number, path)
            for number in range(4)
            for stream in (True, False)
            for path in ("/generate", "/v1/completions")
        ]
        server.eventually(lambda: server.metric("vllm:num_requests_running") > 4, seconds=30)
        moment = tally.complete + chance.randint(0, 40)
        server.eventually(lambda: tally.complete >= moment, seconds=60)

        server.terminate()

        for client in clients:
            client.join(120)
        together.add(tally)
        assert tally.wrong == []
        assert tally.moved == len(clients)
        assert server.exit_code() == 0
