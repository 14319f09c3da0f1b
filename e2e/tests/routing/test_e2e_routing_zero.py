"""Lets a service lose its last replica again and again, and wakes it by a burst of requests.

`make test-routing PART=zero` runs 20 rounds. LLMSERVICE_TEST_ROUNDS sets another number.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import openai
import pytest

from bursts import Burst, half_streams
from e2e_support import PATIENCE, Cluster
from impatient_clients import Ending
from impatient_proxy import ImpatientProxy
from routed import KEY, ROUNDS, Routed
from shared_support.waiting import eventually
from wakes import CREATED_WITHIN_SECONDS, first_replica, is_idle, resting_spec, until_resting

pytestmark = pytest.mark.local

NAME = "chat"
REQUESTS = 20
TOKENS = 8
HOLD_SECONDS = 600
SILENCE_SECONDS = 15.0
"""Time in seconds after which the proxy of a test closes a connection without traffic. It is longer
than the time between two comments, which is 10 s by default."""
COMMENTS = 3
"""Number of comments for which every stream waits in the test with the proxy."""


@pytest.fixture(scope="module")
def service(routed: Callable[..., Routed]) -> Routed:
    """Return a service that has no replicas while nobody uses it."""
    return routed(NAME, replicas=None, **resting_spec(HOLD_SECONDS, most_replicas=2))


def ask(client: openai.OpenAI, number: int) -> str:
    """Send a request, every second one for a stream. Return the answer."""
    if number % 2:
        stream = client.completions.create(
            model=NAME, prompt="The sea", max_tokens=TOKENS, stream=True
        )
        return "".join(event.choices[0].text for event in stream if event.choices)
    whole = client.completions.create(model=NAME, prompt="The sea", max_tokens=TOKENS)
    return whole.choices[0].text


@contextmanager
def without_room(cluster: Cluster) -> Iterator[None]:
    """Let no node take further pods."""
    nodes = cluster.kubectl("get", "nodes", "-o", "name").split()
    cluster.kubectl("cordon", *nodes)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", *nodes)


def test_streams_wait_behind_a_proxy_that_closes_silent_connections(
    service: Routed, capsys: pytest.CaptureFixture[str]
) -> None:
    until_resting(service)
    url = service.url()
    address = urlsplit(url)
    assert address.hostname is not None
    with (
        ImpatientProxy(address.hostname, address.port or 80, SILENCE_SECONDS) as proxy,
        ExitStack() as room,
    ):
        streams = [(proxy.url, True)] * (REQUESTS // 2)
        direct = [(url, False)] * (REQUESTS // 2)
        # It shows that the proxy does close connections. Nothing is sent before its answer.
        plain_behind_proxy = [(proxy.url, False)]
        # The pod of the replica exists within a second, and must find no node.
        room.enter_context(without_room(service.cluster))
        with Burst(NAME, KEY, [*streams, *direct, *plain_behind_proxy]) as burst:
            eventually(lambda: burst.fewest_comments() >= COMMENTS, within=PATIENCE, every=0.2)
            assert proxy.closed == 1
            room.close()
            uncordoned = time.monotonic()
        ended = time.monotonic()
    *others, behind = burst.last
    with capsys.disabled():
        print(
            f"\nproxy: {burst.summary()}; all ended {ended - uncordoned:.1f} s after there was "
            f"room, and {ended - burst.began:.1f} s after their begin"
        )
    assert behind.ending is Ending.LOST
    assert [each.problem for each in others if each.ending is not Ending.ANSWERED] == []


@pytest.mark.parametrize("number", range(1, max(ROUNDS // 10, 1) + 1))
def test_requests_that_arrive_while_the_last_replica_ends_are_answered(
    service: Routed, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    until_resting(service)
    one = [(service.url(), False)]
    with Burst(NAME, KEY, one) as first:
        pass
    assert first.unanswered() == []
    eventually(lambda: wants_no_replicas(service), within=PATIENCE, every=0.1)
    with Burst(NAME, KEY, half_streams(service.url(), REQUESTS)) as burst:
        pass
    with capsys.disabled():
        print(
            f"\nround {number}, while the last replica ends: all answers after "
            f"{time.monotonic() - burst.began:.1f} s; {burst.summary()}"
        )
    assert burst.unanswered() == []


def wants_no_replicas(service: Routed) -> bool:
    found = service.cluster.read("deployment", NAME, service.namespace)
    assert found is not None
    return bool(found["spec"]["replicas"] == 0)


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
            first_replica(service) as until_created,
        ):
            began = time.monotonic()
            asked = [threads.submit(ask, client, at) for at in range(REQUESTS)]
            created.append(until_created() - began)
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
