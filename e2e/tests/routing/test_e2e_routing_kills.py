"""Kills the parts of a service behind a router under the load of clients that repeat no request.

`make test-routing PART=kills` runs 20 rounds with each fault. LLMSERVICE_TEST_ROUNDS sets another
number.
"""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import openai
import pytest

from e2e_support import PATIENCE
from impatient_clients import Ending, ImpatientClients, Outcome, summary
from routed import KEY, ROUNDS, Routed, kill_dns, restart_dns
from shared_support.waiting import eventually, holds_for

pytestmark = pytest.mark.local

AWAY_SECONDS = 5.0
"""Time in seconds for which the DNS is away."""


def kill_dns_for_a_while(_: Routed) -> None:
    kill_dns()
    holds_for(AWAY_SECONDS, lambda: True, every=1)
    restart_dns()


def kill_picker_while_requests_wait(service: Routed) -> None:
    """Kill the picker while no replica exists, so that every request is held."""
    for pod in service.replicas():
        service.delete(pod, "--grace-period=1")
    eventually(lambda: service.held_requests() > 0, within=PATIENCE, every=0.2)
    service.kill_picker()


@dataclass(frozen=True)
class Fault:
    act: Callable[[Routed], None]
    allowed: frozenset[Ending] = frozenset()
    """Endings of requests that the fault may cause, besides complete answers."""


FAULTS = {
    "picker": Fault(Routed.kill_picker),
    "both pickers": Fault(Routed.kill_both_pickers),
    "picker that holds requests": Fault(kill_picker_while_requests_wait),
    "replica": Fault(Routed.kill_replica, frozenset({Ending.CUT})),
    "drain of a replica": Fault(Routed.drain_replica),
    "DNS": Fault(kill_dns_for_a_while),
    "metrics servers": Fault(Routed.kill_metrics_servers),
    "Envoy": Fault(Routed.kill_envoy, frozenset({Ending.CUT, Ending.LOST})),
    "router pod": Fault(Routed.kill_router_pod, frozenset({Ending.CUT, Ending.LOST})),
}


@dataclass
class PatientClient:
    """OpenAI's client with its default retries, which sends requests until it is stopped."""

    url: str
    model: str

    def __post_init__(self) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "PatientClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY) as client:
            while not self._over.wait(0.1):
                try:
                    client.completions.create(model=self.model, prompt="The sea", max_tokens=4)
                except openai.OpenAIError as error:
                    self.failures.append(repr(error))
                else:
                    self.answered += 1


@pytest.fixture(scope="module")
def patient(service: Routed) -> Iterator[PatientClient]:
    with PatientClient(service.url(), service.name) as patient:
        yield patient


@pytest.mark.parametrize("key", [None, "another"])
def test_the_router_refuses_a_client_without_the_key(service: Routed, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{service.url()}/v1/models", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as response:
        assert response.code == 401
        assert json.load(response)["error"]["code"] == 401


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_kill_costs_no_request_but_those_of_its_own_process(
    service: Routed,
    clients: ImpatientClients,
    patient: PatientClient,
    name: str,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fault = FAULTS[name]
    eventually(clients.go_on(1), within=PATIENCE, every=0.2)
    began, failures = time.monotonic(), len(patient.failures)

    fault.act(service)
    eventually(clients.go_on(3), within=PATIENCE, every=0.2)
    service.wait_ready()
    # The requests that began before the service was well again have ended too.
    eventually(clients.go_on(2), within=PATIENCE, every=0.2)

    seen = clients.since(began)
    with capsys.disabled():
        print(f"\nround {number} of {ROUNDS}, {name}: {summary(seen)}")
    assert wrong(seen, fault.allowed) == []
    assert patient.failures[failures:] == []


def wrong(seen: list[Outcome], allowed: frozenset[Ending]) -> list[str]:
    return [str(each) for each in seen if each.ending not in {Ending.ANSWERED, *allowed}]
