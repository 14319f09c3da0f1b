"""Tests that the states of watched pods show a gap in service, and how each pod ended."""

from e2e_support import Cluster, Object
from watched_pods import WatchedPods

LABEL, NAME = "app", "chat"


def pod(name: str, *, ready: bool = True, leaving: bool = False, code: int | None = None) -> Object:
    metadata: Object = {"name": name, "labels": {LABEL: NAME}}
    if leaving:
        metadata["deletionTimestamp"] = "2030-01-31T12:00:00Z"
    state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": metadata,
        "status": {"conditions": conditions, "containerStatuses": [{"state": state}]},
    }


def watched(*states: tuple[float, str, Object]) -> WatchedPods:
    return WatchedPods(Cluster(), "team", list(states))


START = ((0.0, "ADDED", pod("a")), (0.0, "ADDED", pod("b")))
EVICTED = (1.0, "MODIFIED", pod("a", leaving=True))
SUCCESSOR = ((2.0, "ADDED", pod("c", ready=False)), (5.0, "MODIFIED", pod("c")))
SECOND = (6.0, "MODIFIED", pod("b", leaving=True))


def test_one_pod_serves_if_each_eviction_waits_for_the_successor() -> None:
    assert watched(*START, EVICTED, *SUCCESSOR, SECOND).fewest_serving(LABEL, NAME) == 1


def test_no_pod_serves_if_both_are_evicted_at_once() -> None:
    assert watched(*START, EVICTED, SECOND, *SUCCESSOR).fewest_serving(LABEL, NAME) == 0


def test_pods_with_another_label_do_not_count() -> None:
    other = pod("other")
    other["metadata"]["labels"] = {LABEL: "other"}
    states = watched((0.0, "ADDED", other), *START, EVICTED, SECOND)
    assert states.fewest_serving(LABEL, NAME) == 0


def test_the_end_of_a_pod_has_its_time_since_the_eviction_and_its_exit_code() -> None:
    states = watched(*START, EVICTED, (9.0, "DELETED", pod("a", leaving=True, code=137)))
    assert states.endings(LABEL, NAME) == {"a": 8.0}
    assert states.exit_codes(LABEL, NAME) == {"a": {137}}
