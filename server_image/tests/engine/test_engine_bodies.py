"""Tests that bodies that take long to parse delay neither probes nor other clients."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server_support.engine import SERVED_NAME, ModelServer

ROUTES = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/messages": "messages",
    "/v1/responses": "input",
    "/tokenize": "messages",
    "/detokenize": "tokens",
    "/generate": "prompt",
}
ITEMS = {
    "numbers in arrays": [1],
    "objects": {},
    "numbers": 1,
    "texts": "a",
    "wrong messages": {"role": "user", "content": 1},
}
BODY_BYTES = 1_000_000
FEW_ITEMS = 15_000
"""Number of items below the server's limit on containers, so that vLLM validates the items."""

PROBE_SECONDS = 1.0
"""Maximum CPU time that the server may take during one probe. A busy machine lengthens the wait for
the probe, but not this time."""
BODY_SECONDS = 10.0


def body(route: str, item: object, few: bool) -> bytes:
    items = [item] * (FEW_ITEMS if few else BODY_BYTES // (len(json.dumps(item)) + 2))
    wanted = {"model": SERVED_NAME, "max_tokens": 1, ROUTES[route]: items}
    return json.dumps(wanted).encode()


def slowest_probe(server: ModelServer, over: threading.Event) -> float:
    """Return the longest CPU time that the server took during one probe."""
    slowest = 0.0
    while not over.is_set():
        began = server.cpu_seconds()
        assert server.probe("/livez").status == 200
        slowest = max(slowest, server.cpu_seconds() - began)
    return slowest


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("route", ROUTES)
def test_hurtful_bodies_are_refused_while_probes_answer(
    server: ModelServer, route: str, few: bool
) -> None:
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        probing = pool.submit(slowest_probe, server, over)
        try:
            for name, item in ITEMS.items():
                began = time.monotonic()
                answer = server.post(route, body(route, item, few))
                assert time.monotonic() - began < BODY_SECONDS, name
                if not (route == "/detokenize" and name == "numbers"):
                    assert answer.status == 400, (name, answer.body[:300])
        finally:
            over.set()
        assert probing.result() < PROBE_SECONDS
