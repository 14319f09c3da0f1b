"""Tests that thousands of hostile requests leave the server's answers and memory unchanged."""

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from server_support.engine import SERVED_NAME, ModelServer
from server_support.hostile import Attacker, requests_from_schema, resident_bytes
from server_support.hostile_bytes import SECRET

REQUESTS = int(os.environ.get("LLMSERVICE_TEST_REQUESTS", "640"))
ATTACKERS = 8
FROM_SCHEMA = 8
"""One of this many requests is generated from the server's own OpenAPI document."""
MEMORY_GROWTH = 1.05
SETTLE_SECONDS = 8
"""Time in seconds to wait for the server, which releases free memory every five seconds."""


def test_hostile_requests_leave_the_server_as_it_was(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answer = server.post("/v1/completions", wanted).json()["choices"][0]["text"]
    share = REQUESTS // (2 * ATTACKERS)
    started = time.monotonic()
    document = server.get("/openapi.json").json()
    from_schema = requests_from_schema(document, 2 * ATTACKERS * share // FROM_SCHEMA)
    # The third part repeats the requests of the second one. It runs only if memory has grown.
    parts = [from_schema[number :: 2 * ATTACKERS] for number in range(2 * ATTACKERS)]
    attackers = [
        Attacker(server, document, number, part)
        for number, part in enumerate([*parts, *parts[ATTACKERS:]])
    ]
    # The first part fills everything that grows only once: the KV cache, the allocator and the
    # compiled grammars.
    _attack(server, attackers[:ATTACKERS], share)
    before = settled_bytes(server)
    _attack(server, attackers[ATTACKERS : 2 * ATTACKERS], share)
    after = settled_bytes(server)
    growth = after / before
    if growth >= MEMORY_GROWTH:
        # The cause may be a large grammar that was first compiled in the second part. Unlike a
        # leak, it does not make the memory grow again in the third part.
        _attack(server, attackers[2 * ATTACKERS :], share)
        growth = settled_bytes(server) / after

    statuses: Counter[str] = Counter()
    for attacker in attackers:
        statuses.update(attacker.findings.statuses)
    print(
        f"{statuses.total()} requests in {time.monotonic() - started:.0f} s, "
        f"memory x{growth:.3f} of {before / 2**20:.0f} MiB: {dict(sorted(statuses.items()))}"
    )
    wrong = [line for attacker in attackers for line in attacker.findings.wrong]
    assert not wrong, "\n".join(wrong[:20])
    assert growth < MEMORY_GROWTH
    assert server.post("/v1/completions", wanted).json()["choices"][0]["text"] == answer
    assert SECRET not in server.log.read_text(errors="replace")


def settled_bytes(server: ModelServer) -> int:
    """Return the resident memory in bytes after the server has released free memory."""
    settled = time.monotonic() + SETTLE_SECONDS
    server.eventually(lambda: time.monotonic() > settled)
    return resident_bytes(server)


def _attack(server: ModelServer, attackers: list[Attacker], requests: int) -> None:
    with ThreadPoolExecutor(len(attackers)) as pool:
        for attacking in [pool.submit(each.attack, requests) for each in attackers]:
            attacking.result()
    server.eventually(lambda: server.metric("llm_requests_in_flight") == 0, seconds=60)
    server.eventually(lambda: server.metric("vllm:num_requests_running") == 0, seconds=20)
