"""Replaces the replicas and the router pods of a service under the load of clients that repeat no
request.

`make test-routing PART=rollouts` runs 20 rounds of each. LLMSERVICE_TEST_ROUNDS sets another
number.
"""

import time
from collections.abc import Callable

import pytest

from e2e_support import PATIENCE
from impatient_clients import Ending, ImpatientClients, summary
from routed import ROUNDS, Routed
from shared_support.waiting import eventually

pytestmark = pytest.mark.local


def replace_replicas(service: Routed, number: int) -> None:
    service.patch(engine={"seed": number})


def replace_router(service: Routed, number: int) -> None:
    service.patch(router={"heartbeatSeconds": 10 + number})


CHANGES: dict[str, Callable[[Routed, int], None]] = {
    "replicas": replace_replicas,
    "router": replace_router,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_rollout_fails_and_cuts_no_request(
    service: Routed,
    clients: ImpatientClients,
    change: str,
    number: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pods = service.replicas() if change == "replicas" else service.router_pods()
    old = {pod["metadata"]["name"] for pod in pods}
    began = time.monotonic()

    CHANGES[change](service, number)
    service.wait_ready()
    eventually(clients.go_on(2), within=PATIENCE, every=0.2)

    pods = service.replicas() if change == "replicas" else service.router_pods()
    assert old.isdisjoint(pod["metadata"]["name"] for pod in pods)
    seen, seconds = clients.since(began), time.monotonic() - began
    with capsys.disabled():
        print(f"\nrollout {number} of {ROUNDS}, {change}, {seconds:.0f} s: {summary(seen)}")
    assert [str(each) for each in seen if each.ending is not Ending.ANSWERED] == []
