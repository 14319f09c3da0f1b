"""Tests that every declared kind of child is restored, even if many writes are conflicts."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable

import pytest

from llmservice_operator import names
from llmservice_operator.convergence import EQUAL_WRITES, FADE_SECONDS
from llmservice_operator.kinds import CLAIMS, DEPLOYMENTS, LLMSERVICES, Kind
from operator_support.fault_flows import (
    SERVED_KINDS,
    State,
    children_in,
    end_switches,
    is_observed,
    service_of,
    specs_with_every_child,
)
from operator_support.fault_proxy import Answer, Fault, FaultProxy, Seen
from operator_support.fault_sample import CHURN_ROUNDS, SEED, sampled
from operator_support.processes import Api, OperatorProcess, until_settled
from shared_support.waiting import eventually, holds_for

SHARES = {"faithful": 0.0, "conflicts": 0.3}
"""Share of the writes that fail with a conflict."""
WRITES = {"faithful": 1.0, "conflicts": 1.5}
"""Maximum number of writes for each foreign change."""
MEDIAN_SECONDS = {"faithful": 2.0, "conflicts": 30.0}
"""Limits of the median time to a repair. A watch event causes it, and conflicts can delay it."""
RESTORED_WITHIN_SECONDS = 30.0
"""Time limit of each repair. One that is slow because the machine is busy is no fault."""


@pytest.mark.parametrize("name", sampled(list(SHARES), 1))
def test_a_child_of_every_kind_is_restored_with_few_writes(
    api: Api, proxy: FaultProxy, start: Callable[..., OperatorProcess], namespace: str, name: str
) -> None:
    draw = random.Random(f"{SEED} {name}")

    def conflict(seen: Seen) -> Fault | None:
        is_hit = seen.is_write and draw.random() < SHARES[name]
        return Answer.failure(409, "the object has been modified") if is_hit else None

    with start() as operator:
        operator.until_leading()
        for service, spec in specs_with_every_child().items():
            api.create(LLMSERVICES, service_of(service, namespace, spec))
        eventually(lambda: is_observed(api, namespace), 30)
        end_switches(api, namespace)
        until_settled(operator)
        expected = children_in(api, namespace)
        proxy.faults.on_request = conflict
        begin = max(each.at for each in proxy.requests())
        disturbed, seconds = 0, []
        for _ in range(CHURN_ROUNDS):
            for kind in SERVED_KINDS:
                disturbed += disturb(api, kind, namespace)
                seconds.append(until_restored(api, namespace, expected))
            if CHURN_ROUNDS > EQUAL_WRITES:
                # Faster changes of one object would be a contest, in which the operator pauses.
                holds_for(FADE_SECONDS, operator.is_running)
        until_settled(operator)
        assert statistics.median(seconds) <= MEDIAN_SECONDS[name], seconds
        done = [each for each in proxy.writes(begin) if each.status in (200, 201)]
        written = Counter(each.path for each in done if not each.path.endswith("/status"))
        handed_over = sum(n for path, n in written.items() if f"/{DEPLOYMENTS.plural}/" in path)
        # A new workload takes two writes: it is created with its replicas, and then the operator
        # leaves their number to the autoscaler.
        assert written.total() - handed_over / 2 <= disturbed * WRITES[name], written


def disturb(api: Api, kind: Kind, namespace: str) -> int:
    """Relabel or delete each object of a kind; return the number of changes."""
    live = api.list_all(kind, namespace, labelSelector=names.CHILD_SELECTOR)
    for each in live:
        name = each["metadata"]["name"]
        if kind is CLAIMS:  # a claim stays while a pod uses it
            without = {"metadata": {"labels": {names.SERVICE_LABEL: None}}}
            api.patch(kind, namespace, name, without)
        else:
            api.delete(kind, namespace, name)
    return len(live)


def until_restored(api: Api, namespace: str, expected: State) -> float:
    """Wait until the children are as before, and return the seconds that it took."""
    begin = time.monotonic()

    def restored() -> bool:
        assert children_in(api, namespace) == expected
        return True

    eventually(restored, RESTORED_WITHIN_SECONDS)
    return time.monotonic() - begin
