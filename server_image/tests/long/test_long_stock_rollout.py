"""Tests that stock vLLM cuts off answers during rollouts. `make test` does not run this test."""

import os
import random
from pathlib import Path

import engine_env
from localkube.hub.models import TINY_LLAMA, build_models
from server_support.engine import flags_for, running_stock
from server_support.rollout import KeepAliveClient, Tally

ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "10"))
PATIENCE_SECONDS = 30
"""Time in seconds that a client waits. It is the default termination grace period of a pod.

Stock vLLM stops its engine first, and then waits for connections that never get a response.
"""


def test_stock_vllm_cuts_answers_at_a_rollout(tmp_path: Path) -> None:
    python, model = engine_env.engine_python(), build_models()[TINY_LLAMA]
    together = Tally()
    for seed in range(ROUNDS):
        chance = random.Random(seed)
        with running_stock(python, tmp_path / str(seed), *flags_for(model)) as server:
            server.eventually(
                lambda server=server: (  # type: ignore[misc]
                    server.is_listening() and server.probe("/health").status == 200
                )
            )
            tally = Tally()
            clients = [
                KeepAliveClient(
                    server,
                    tally,
                    stream,
                    seed * 100 + number,
                    "/v1/completions",
                    PATIENCE_SECONDS,
                )
                for number in range(8)
                for stream in (True, False)
            ]
            server.eventually(
                lambda server=server: server.metric("vllm:num_requests_running") > 4,  # type: ignore[misc]
                seconds=30,
            )
            moment = tally.complete + chance.randint(0, 40)
            server.eventually(
                lambda tally=tally, moment=moment: tally.complete >= moment,  # type: ignore[misc]
                seconds=60,
            )

            server.terminate()

            for client in clients:
                client.join(4 * PATIENCE_SECONDS)
            print(f"round {seed}: {tally}", flush=True)
            together.add(tally)
    print(f"{ROUNDS} rollouts of stock vLLM: {together}")
    assert together.wrong, "stock vLLM cuts nobody any more: say so in the README"
