"""Lets a service lose its last replica again and again, and wakes it by a burst of requests.

`make test-routing PART=zero` runs 20 rounds. LLMSERVICE_TEST_ROUNDS sets another number.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import openai
import pytest

from e2e_support import PATIENCE, conditions
from routed import KEY, ROUNDS, Routed
from shared_support.waiting import eventually

pytestmark = pytest.mark.local

NAME = "chat"
REQUESTS = 20
TOKENS = 8
IDLE_SECONDS = 60
HOLD_SECONDS = 600
CREATED_WITHIN_SECONDS = 3.0
"""Time in seconds from the first request until the API server has a pod."""


@pytest.fixture(scope="module")
def service(routed: Callable[..., Routed]) -> Routed:
    """Return a service that has no replicas while nobody uses it."""
    autoscaling = {"minReplicas": 0, "maxReplicas": 2, "idle": {"afterSeconds": IDLE_SECONDS}}
    router = {"enabled": True, "holdTimeoutSeconds": HOLD_SECONDS}
    return routed(NAME, replicas=None, autoscaling=autoscaling, router=router)


def is_idle(service: Routed) -> bool:
    live = service.cluster.read("llmservice", NAME, service.namespace)
    assert live is not None
    ready = conditions(live)["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "Idle"), ready
    return not service.replicas()


def ask(client: openai.OpenAI, number: int) -> str:
    """Send a request, every second one for a stream. Return the answer."""
    if number % 2:
        stream = client.completions.create(
            model=NAME, prompt="The sea", max_tokens=TOKENS, stream=True
        )
        return "".join(event.choices[0].text for event in stream if event.choices)
    whole = client.completions.create(model=NAME, prompt="The sea", max_tokens=TOKENS)
    return whole.choices[0].text


def test_a_burst_of_requests_wakes_the_service_and_is_answered_in_every_round(
    service: Routed, capsys: pytest.CaptureFixture[str]
) -> None:
    created, answered = [], []
    for number in range(1, ROUNDS + 1):
        eventually(lambda: is_idle(service), within=PATIENCE, every=1)
        with (
            openai.OpenAI(
                base_url=f"{service.url()}/v1", api_key=KEY, max_retries=0, timeout=HOLD_SECONDS
            ) as client,
            ThreadPoolExecutor(REQUESTS) as threads,
        ):
            began = time.monotonic()
            asked = [threads.submit(ask, client, at) for at in range(REQUESTS)]
            eventually(service.replicas, within=PATIENCE, every=0.1)
            created.append(time.monotonic() - began)
            wait(asked)
            answered.append(time.monotonic() - began)
        assert all(each.result() for each in asked)
        with capsys.disabled():
            print(
                f"\nround {number} of {ROUNDS}: the first pod after {created[-1]:.1f} s, "
                f"{REQUESTS} answers after {answered[-1]:.1f} s"
            )
    eventually(lambda: is_idle(service), within=PATIENCE, every=1)
    late = sorted(created)[int(0.95 * (len(created) - 1))]
    with capsys.disabled():
        print(f"\nzero: the first pod after {late:.1f} s (p95), limit {CREATED_WITHIN_SECONDS} s")
    assert late <= CREATED_WITHIN_SECONDS
