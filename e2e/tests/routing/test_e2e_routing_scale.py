"""Scales a service from 2 to 4 replicas and back under the load of clients that keep their
connections: at first behind a plain Service object, then behind a router.
"""

from collections.abc import Callable, Iterator

import pytest

from e2e_support import PATIENCE
from impatient_clients import ImpatientClients, summary
from routed import KEY, Routed, restart_dns
from shared_support.waiting import eventually, holds_for

pytestmark = pytest.mark.local

NAME = "chat"
CLIENTS = 24
FEW, MANY = 2, 4
SHARE_WITHIN_SECONDS = 10.0
"""Time in seconds after which a new replica must have its share."""
COUNT_SECONDS = 10.0
"""Time in seconds for which the requests of each replica are counted."""
DNS_SECONDS = 30
"""Lifetime of DNS answers, as with kubeadm."""
ANSWERS = "vllm:request_success_total"
"""Metric of a replica: completed requests."""


@pytest.fixture(scope="module")
def service(routed: Callable[..., Routed]) -> Iterator[Routed]:
    restart_dns(cache_seconds=DNS_SECONDS)
    yield routed(NAME, replicas=FEW, router={"enabled": False})
    restart_dns()


@pytest.mark.parametrize("is_routed", [False, True], ids=["plain Service object", "router"])
def test_new_replicas_get_their_share_from_clients_that_keep_their_connections(
    service: Routed, is_routed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    service.patch(router={"enabled": is_routed})
    service.wait_ready()
    old = {pod["metadata"]["name"] for pod in service.replicas()}
    with ImpatientClients(
        service.url(), NAME, KEY, CLIENTS, requests_per_connection=None, pause_seconds=0.5
    ) as clients:
        eventually(clients.go_on(2), within=PATIENCE, every=0.2)
        service.patch(replicas=MANY)
        service.wait_ready()
        holds_for(SHARE_WITHIN_SECONDS, lambda: True, every=1)
        shares = count_shares(service)
        service.patch(replicas=FEW)
        service.wait_ready()
        eventually(clients.go_on(2), within=PATIENCE, every=0.2)
    new = {name: share for name, share in shares.items() if name not in old}
    kind = "router" if is_routed else "plain Service object"
    with capsys.disabled():
        told = ", ".join(f"{share:.0%}" for share in new.values())
        print(f"\n{kind}: the new replicas get {told} of the requests; {summary(clients.outcomes)}")
    assert len(new) == MANY - FEW
    if is_routed:
        assert min(new.values()) >= 0.5 / MANY
        assert clients.failures() == []


def count_shares(service: Routed) -> dict[str, float]:
    """Return the share of each replica in the requests of the next COUNT_SECONDS."""
    pods = service.replicas()
    before = [service.metric(pod, ANSWERS) for pod in pods]
    holds_for(COUNT_SECONDS, lambda: True, every=1)
    counts = [service.metric(pod, ANSWERS) - was for pod, was in zip(pods, before, strict=True)]
    return {
        pod["metadata"]["name"]: count / max(sum(counts), 1)
        for pod, count in zip(pods, counts, strict=True)
    }
