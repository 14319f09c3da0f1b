"""Tests watches that lose, repeat or reorder events, and watches that end immediately."""

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.convergence import EQUAL_WRITES, FADE_SECONDS
from llmservice_operator.kinds import CLAIMS, LLMSERVICES, SERVICES
from operator_support.fault_flows import (
    SERVED_KINDS,
    children_in,
    end_switches,
    is_observed,
    owners_are_alive,
    service_of,
    specs_with_every_child,
)
from operator_support.fault_proxy import GONE, Event, FaultProxy, Seen
from operator_support.fault_sample import CHURN_ROUNDS, IS_LONG, OUTAGE_SECONDS, SEED
from operator_support.processes import (
    Api,
    OperatorProcess,
    free_the_lease,
    make_service,
    until_settled,
)
from shared_support.waiting import eventually, holds_for

AUDIT_SECONDS = 3
REPAIRED_WITHIN_SECONDS = 30.0
RELISTS = 100 if IS_LONG else 10
"""Minimum number of lists that replace watches, for all kinds together."""
MEMORY_GROWTH = 1.05 if IS_LONG else 1.2
"""Maximum growth of the memory in the second half of the outage, as a factor. A new process still
grows in the first half."""
HIGHEST_RATE = 20.0
"""Maximum number of requests per second."""

Start = Callable[..., OperatorProcess]


class Unreliable:
    """Loses a tenth of all events, repeats another tenth, and withholds another tenth.

    A later event of the same kind of object releases the withheld events.
    """

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._withheld: list[Event] = []
        self.disturbed = 0

    def __call__(self, _: Seen, events: list[Event]) -> list[Event]:
        delivered = []
        for event in events:
            match self._draw.choices(("lost", "twice", "late", "as it is"), (1, 1, 1, 7))[0]:
                case "lost":
                    self.disturbed += 1
                    continue
                case "twice":
                    self.disturbed += 1
                    delivered += [event, event]
                case "late" if event["object"].get("kind"):
                    self.disturbed += 1
                    self._withheld.append(event)
                    continue
                case _:
                    delivered.append(event)
            same = [each for each in self._withheld if is_same_kind(each, event)]
            self._withheld = [each for each in self._withheld if each not in same]
            delivered += same
        return delivered


def is_same_kind(one: Event, other: Event) -> bool:
    return bool(one["object"].get("kind") == other["object"].get("kind"))


def test_no_child_is_wrong_for_longer_than_an_audit_when_events_are_lost_repeated_or_late(
    api: Api, proxy: FaultProxy, start: Start, namespace: str
) -> None:
    with start(AUDIT_PERIOD_SECONDS=str(AUDIT_SECONDS)) as operator:
        operator.until_leading()
        for name, spec in specs_with_every_child().items():
            api.create(LLMSERVICES, service_of(name, namespace, spec))
        eventually(lambda: is_observed(api, namespace), REPAIRED_WITHIN_SECONDS)
        end_switches(api, namespace)
        until_settled(operator)
        expected = children_in(api, namespace)
        assert {text.split()[0] for text in expected} == {kind.kind for kind in SERVED_KINDS}
        draw = random.Random(SEED)
        unreliable = proxy.faults.on_events = Unreliable(SEED)
        for _ in range(CHURN_ROUNDS):
            for kind in SERVED_KINDS:
                live = api.list_all(kind, namespace, labelSelector=names.CHILD_SELECTOR)
                metadata = draw.choice(live)["metadata"]
                # A claim stays while a pod uses it.
                if draw.random() < 0.5 and kind is not CLAIMS:
                    api.delete(kind, namespace, metadata["name"])
                else:
                    # The label is random: if the same field changes every few seconds, the operator
                    # leaves it alone for a while.
                    label = draw.choice(sorted(metadata["labels"]))
                    without = {"metadata": {"labels": {label: None}}}
                    api.patch(kind, namespace, metadata["name"], without)

            def repaired() -> bool:
                assert children_in(api, namespace) == expected
                return owners_are_alive(api, namespace)

            eventually(repaired, REPAIRED_WITHIN_SECONDS)
            if CHURN_ROUNDS > EQUAL_WRITES:
                # Faster changes of one object would be a contest, in which the operator pauses.
                holds_for(FADE_SECONDS, operator.is_running)
        assert unreliable.disturbed > 0


@pytest.mark.parametrize(
    "only", [pytest.param([GONE], id="gone"), pytest.param([], id="ended at once")]
)
def test_watches_that_end_at_once_neither_flood_the_api_server_nor_leave_orphans(
    api: Api,
    proxy: FaultProxy,
    start: Start,
    namespace: str,
    only: list[Event],
) -> None:
    with start(AUDIT_PERIOD_SECONDS=str(AUDIT_SECONDS)) as operator:
        operator.until_leading()
        for name in ("kept", "deleted"):
            api.create(LLMSERVICES, make_service(name, namespace))
        eventually(lambda: is_observed(api, namespace), REPAIRED_WITHIN_SECONDS)
        until_settled(operator)
        proxy.faults.cuts_watch = lambda _: only
        begin = max(each.at for each in proxy.requests())
        proxy.end_watches()
        api.delete(SERVICES, namespace, "kept")
        api.delete(LLMSERVICES, namespace, "deleted")
        api.create(LLMSERVICES, make_service("made", namespace))
        memory, began = [], time.monotonic()
        for number in range(int(OUTAGE_SECONDS)):
            # No event reports a service that is made and deleted between two watches.
            api.create(LLMSERVICES, make_service(f"brief-{number}", namespace))
            holds_for(1.0, operator.is_running)
            api.delete(LLMSERVICES, namespace, f"brief-{number}")
            memory.append(operator.metric("process_resident_memory_bytes"))
        lasted = time.monotonic() - began
        sent = proxy.requests(begin)
        assert any(each.is_watch for each in sent), "the operator did not watch again"
        lists = [each for each in sent if each.is_list and "llmservice-operator" not in each.agent]
        print(
            f"the watches listed {len(lists)} times; memory {memory[len(memory) // 2]:.0f}"
            f" and then {memory[-1]:.0f} bytes"
        )
        assert len(lists) >= (RELISTS if only else 0)
        if IS_LONG:  # a process that has just begun still grows
            assert memory[-1] <= MEMORY_GROWTH * memory[len(memory) // 2]
        assert len(sent) <= HIGHEST_RATE * (lasted + 2)
        proxy.faults.clear()

        def repaired() -> bool:
            owned = {text.split()[1] for text in children_in(api, namespace)}
            assert owned == {"kept", "made"}
            assert api.read(SERVICES, namespace, "kept")
            assert operator.metric("llmservice_cache_objects", kind=LLMSERVICES.plural) == 2
            return is_observed(api, namespace)

        # The garbage collector looks for new kinds every half minute.
        eventually(repaired, 60)


def test_an_operator_that_starts_with_an_old_list_of_services_reverts_nothing(
    api: Api, proxy: FaultProxy, start: Start, namespace: str
) -> None:
    path = LLMSERVICES.path(namespace)
    old: list[dict[str, Any]] = []
    listed: Counter[str] = Counter()

    def remember(seen: Seen, found: dict[str, Any]) -> dict[str, Any]:
        if seen.path == path:
            old.append(found)
        return found

    def lag(seen: Seen, found: dict[str, Any]) -> dict[str, Any]:
        """Answer each operator's first list request, which fills its cache, with the old list."""
        if seen.path != path:
            return found
        listed[seen.agent] += 1
        return old[0] if listed[seen.agent] == 1 else found

    with start(AUDIT_PERIOD_SECONDS="1") as first:
        first.until_leading()
        for name in ("changed", "again", "gone"):
            api.create(LLMSERVICES, make_service(name, namespace))
        eventually(lambda: is_observed(api, namespace))
        until_settled(first)
        proxy.faults.on_list = remember
        eventually(lambda: old)
        proxy.faults.clear()
        api.patch(LLMSERVICES, namespace, "changed", {"spec": {"engine": {"maxModelLen": 256}}})
        for name in ("again", "gone"):
            api.delete(LLMSERVICES, namespace, name)
        api.create(LLMSERVICES, make_service("again", namespace))

        def followed() -> bool:
            assert {text.split()[1] for text in children_in(api, namespace)} == {"changed", "again"}
            return is_observed(api, namespace) and owners_are_alive(api, namespace)

        # The garbage collector looks for new kinds every half minute.
        eventually(followed)
        until_settled(first)
    before = children_in(api, namespace, with_versions=True)
    free_the_lease(api, namespace)
    proxy.faults.on_list = lag
    with start() as second:
        second.until_leading()
        eventually(lambda: second.metric("controller_runtime_reconcile_total") >= 2)
        until_settled(second)
        assert children_in(api, namespace, with_versions=True) == before
        assert is_observed(api, namespace)
    assert len(listed) == 2
