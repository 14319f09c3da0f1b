import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, LEASES, LLMSERVICES
from operator_support.forked import ForkedOperator
from operator_support.processes import Api, OperatorProcess, make_service
from shared_support.waiting import eventually

LEASE = "llmservice-operator"
CRASH_FAILOVER_SECONDS = 20
GRACEFUL_FAILOVER_SECONDS = 5


@pytest.fixture
def pair(namespace: str, tmp_path: Path) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """A leader and a standby."""
    with ForkedOperator(tmp_path / "a", namespace, WATCH_NAMESPACES=namespace) as leader:
        leader.until_leading()
        with ForkedOperator(tmp_path / "b", namespace, WATCH_NAMESPACES=namespace) as standby:
            yield leader, standby.until_ready()


def until_deployed(api: Api, namespace: str, name: str, timeout: float = 10) -> None:
    eventually(lambda: api.read(DEPLOYMENTS, namespace, name), timeout)


def test_only_the_holder_of_the_lease_writes_and_hands_over_at_its_end_within_five_seconds(
    api: Api, namespace: str, pair: tuple[OperatorProcess, OperatorProcess]
) -> None:
    leader, standby = pair
    api.create(LLMSERVICES, make_service("llm", namespace))
    until_deployed(api, namespace, "llm")
    assert leader.writes() > 0
    assert standby.writes() == 0
    assert standby.metric("leader_election_master_status") == 0
    # The standby's cache is filled like the leader's.
    eventually(lambda: standby.metric("llmservice_cache_objects", kind="deployments") == 1)
    holder = api.get(LEASES, namespace, LEASE)["spec"]["holderIdentity"]
    assert any(holder in line["msg"] for line in leader.log_lines())

    started = time.monotonic()
    assert leader.terminate() == 0
    standby.until_leading(GRACEFUL_FAILOVER_SECONDS)
    assert time.monotonic() - started < GRACEFUL_FAILOVER_SECONDS
    api.create(LLMSERVICES, make_service("next", namespace))
    until_deployed(api, namespace, "next")
    assert api.get(LEASES, namespace, LEASE)["spec"]["leaseTransitions"] == 1


def test_a_standby_takes_over_after_a_crash_within_twenty_seconds(
    api: Api, namespace: str, pair: tuple[OperatorProcess, OperatorProcess]
) -> None:
    leader, standby = pair
    leader.kill()
    started = time.monotonic()
    api.create(LLMSERVICES, make_service("llm", namespace))
    until_deployed(api, namespace, "llm", CRASH_FAILOVER_SECONDS)
    assert 5 < time.monotonic() - started < CRASH_FAILOVER_SECONDS
    assert standby.metric("leader_election_master_status") == 1


def test_a_leader_whose_lease_was_taken_exits(api: Api, namespace: str, log: Path) -> None:
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as leader:
        leader.until_leading()
        api.patch(LEASES, namespace, LEASE, {"spec": {"holderIdentity": "somebody-else"}})
        assert leader.wait(8) == 1
        assert any("lost the lease" in line["msg"] for line in leader.log_lines())


def test_a_leader_whose_lease_was_deleted_exits_and_another_one_leads(
    api: Api, namespace: str, log: Path
) -> None:
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as leader:
        leader.until_leading()
        api.delete(LEASES, namespace, LEASE)
        assert leader.wait(8) == 1
        assert any("lost the lease: it was deleted" in line["msg"] for line in leader.log_lines())
    with ForkedOperator(log, namespace, WATCH_NAMESPACES=namespace) as other:
        other.until_leading(5)
