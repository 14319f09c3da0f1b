"""Thousands of requests that nobody should send: the server refuses them and stays as it was."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

from engine_support import SERVED_NAME, ModelServer
from hostile_support import SECRET, Attacker, resident_bytes

REQUESTS = int(os.environ.get("LLMSERVICE_TEST_REQUESTS", "1000"))
ATTACKERS = 8
MEMORY_GROWTH = 1.05


def test_hostile_requests_leave_the_server_as_it_was(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    answer = server.post("/v1/completions", wanted).json()["choices"][0]["text"]
    share = REQUESTS // (ATTACKERS + ATTACKERS // 4)
    started = time.monotonic()
    # The first fifth fills what is filled once: caches of the allocator and of compiled grammars.
    _attack(server, [Attacker(server, 1000 + number) for number in range(ATTACKERS // 4)], share)
    before = resident_bytes(server)

    attackers = [Attacker(server, number) for number in range(ATTACKERS)]
    _attack(server, attackers, share)

    growth = resident_bytes(server) / before
    findings = [attacker.findings for attacker in attackers]
    statuses: dict[str, int] = {}
    for each in findings:
        for status, number in each.statuses.items():
            statuses[status] = statuses.get(status, 0) + number
    print(
        f"{sum(statuses.values())} requests in {time.monotonic() - started:.0f} s, "
        f"memory x{growth:.3f} of {before / 2**20:.0f} MiB: {dict(sorted(statuses.items()))}"
    )
    wrong = [line for each in findings for line in each.wrong]
    assert not wrong, "\n".join(wrong[:20])
    assert growth < MEMORY_GROWTH
    assert server.post("/v1/completions", wanted).json()["choices"][0]["text"] == answer
    assert SECRET not in server.log.read_text(errors="replace")


def _attack(server: ModelServer, attackers: list[Attacker], requests: int) -> None:
    with ThreadPoolExecutor(len(attackers)) as pool:
        for attacking in [pool.submit(each.attack, requests) for each in attackers]:
            attacking.result()
    server.eventually(lambda: server.metric("llm_requests_in_flight") == 0, seconds=60)
    server.eventually(lambda: server.metric("vllm:num_requests_running") == 0, seconds=20)
