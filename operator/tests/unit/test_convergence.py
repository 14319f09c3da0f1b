"""Tests that no object is written endlessly, and that the status names the obstacle."""

import copy
import itertools
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.convergence import (
    EQUAL_WRITES,
    LONGEST_PAUSE_SECONDS,
    WRITE_BURST,
    ConvergenceGuard,
    Pause,
)
from llmservice_operator.desired.comparison import Difference, find_differences
from llmservice_operator.desired.ownership import say_contest, say_foreign_cause
from operator_support.services import as_live

NAME = (("team", "llama"), "Deployment")
MANIFEST: Manifest = {"spec": {"image": "a", "replicas": 2}}


def differing(field: str, live: Any = "theirs") -> list[Difference]:
    return [Difference(("f:spec", f"f:{field}"), "ours", live)]


class Writes:
    """Writes an object as often as the guard allows. The test sets the clock."""

    def __init__(self) -> None:
        self.guard = ConvergenceGuard()
        self.now = 1000.0
        self.moments: list[float] = []

    def try_to(
        self,
        found: list[Difference],
        manifest: Manifest = MANIFEST,
        after: list[Difference] | None = None,
    ) -> Pause | None:
        pause = self.guard.pause(NAME, manifest, found, self.now)
        if pause is None:
            self.moments.append(self.now)
            self.guard.wrote(NAME, manifest, found, after or [], self.now)
        return pause

    def contend(self, seconds: float, field: str = "image", step: float = 0.02) -> None:
        """Write the field for `seconds` seconds, while another client keeps changing it back."""
        end = self.now + seconds
        while self.now < end:
            self.try_to(differing(field))
            self.now += step


def test_only_the_same_version_of_a_written_object_is_known_to_equal_the_same_manifest() -> None:
    guard = ConvergenceGuard()
    guard.settle(NAME, MANIFEST, "7")
    assert not guard.is_settled(NAME, MANIFEST, "7")  # no write of this object is known
    guard.wrote(NAME, MANIFEST, differing("image"), [], 1000.0)
    assert not guard.is_settled(NAME, MANIFEST, "7")
    guard.settle(NAME, MANIFEST, "7")
    assert guard.is_settled(NAME, MANIFEST, "7")
    assert not guard.is_settled(NAME, MANIFEST, "8")
    assert not guard.is_settled(NAME, {"spec": {"image": "b"}}, "7")
    # A webhook keeps the object as it was, so the new manifest gets the old version.
    other: Manifest = {"spec": {"image": "b"}}
    guard.wrote(NAME, other, differing("image"), differing("image"), 1001.0, "7")
    assert not guard.is_settled(NAME, other, "7")
    guard.wrote(NAME, MANIFEST, differing("image"), [], 1002.0, "9")
    assert guard.is_settled(NAME, MANIFEST, "9")
    guard.forget(NAME[0])
    assert not guard.is_settled(NAME, MANIFEST, "9")


def test_a_field_that_is_changed_back_is_left_for_a_time_that_grows_to_five_minutes() -> None:
    writes = Writes()
    writes.contend(3600.0, step=0.1)
    pauses = [b - a for a, b in itertools.pairwise(writes.moments)]
    assert max(pauses[: EQUAL_WRITES - 1]) <= 0.11
    grown = pauses[EQUAL_WRITES:]
    assert grown[:3] == pytest.approx([2.0, 4.0, 8.0], abs=0.2)
    assert all(b > a - 0.2 for a, b in itertools.pairwise(grown))
    assert max(pauses) == pytest.approx(LONGEST_PAUSE_SECONDS, abs=0.2)


def test_after_a_minute_any_contest_causes_less_than_one_write_per_second() -> None:
    writes = Writes()
    end = writes.now + 600
    number = 0
    while writes.now < end:
        # Each write is for a different field, so that no field is written twice.
        number += 1
        writes.try_to(differing(f"field-{number}"))
        writes.now += 0.02
    late = [moment for moment in writes.moments if moment > 1300]
    assert len(late) < 300
    assert len(writes.moments) < WRITE_BURST + 600


def test_every_field_of_an_object_may_be_restored_at_once() -> None:
    writes = Writes()
    for number in range(150):
        assert writes.try_to(differing(f"field-{number}")) is None


def test_another_field_is_restored_at_once_while_one_is_left_alone() -> None:
    writes = Writes()
    writes.contend(30.0)
    assert writes.try_to(differing("image")) is not None
    assert writes.try_to([*differing("image"), *differing("replicas")]) is None


def test_another_manifest_is_written_at_once() -> None:
    writes = Writes()
    writes.contend(30.0)
    assert writes.try_to(differing("image"), {"spec": {"image": "b"}}) is None


def test_a_contest_that_is_over_is_forgotten() -> None:
    writes = Writes()
    writes.contend(20.0)
    writes.now += 1000
    for _ in range(EQUAL_WRITES):
        assert writes.try_to(differing("image")) is None
    assert writes.try_to(differing("image")) is not None


@pytest.mark.parametrize("others", [0, 3])
def test_occasional_edits_are_always_undone(others: int) -> None:
    writes = Writes()
    for _ in range(100):
        assert writes.try_to(differing("image")) is None
        for number in range(others):
            writes.now += 3
            assert writes.try_to(differing(f"field-{number}")) is None
        writes.now += 10


def test_a_rewritten_object_is_not_written_again_for_five_minutes() -> None:
    writes, rewritten = Writes(), differing("image", "mirror/a")
    assert writes.try_to(differing("image"), after=rewritten) is None
    pause = writes.try_to(rewritten)
    assert pause == Pause(LONGEST_PAUSE_SECONDS, is_rewritten=True)
    # An edit differs from the webhook's value, so the operator undoes it without a pause.
    assert writes.try_to(differing("image", "edited"), after=rewritten) is None
    writes.now += LONGEST_PAUSE_SECONDS
    assert writes.try_to(rewritten, after=rewritten) is None


def test_a_service_that_is_gone_leaves_nothing_behind() -> None:
    writes = Writes()
    writes.contend(20.0)
    writes.guard.forget(NAME[0])
    assert writes.guard._records == {}
    assert writes.try_to(differing("image")) is None


HPA: Manifest = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "llama", "namespace": "team"},
    "spec": {
        "metrics": [
            {
                "type": "External",
                "external": {"target": {"type": "AverageValue", "averageValue": "1000"}},
            }
        ],
        "behavior": {"scaleUp": {"tolerance": "0.05"}},
    },
}


@pytest.mark.parametrize(
    ("stored", "is_equal"), [("1k", True), ("1000", True), ("1000000m", True), ("2k", False)]
)
def test_the_target_of_an_autoscaler_is_compared_as_an_amount(stored: str, is_equal: bool) -> None:
    live = as_live(HPA)
    live["spec"]["metrics"][0]["external"]["target"]["averageValue"] = stored
    live["spec"]["behavior"]["scaleUp"]["tolerance"] = "50m"
    assert (not list(find_differences(live, HPA))) is is_equal


def test_a_difference_names_the_field_as_people_write_it() -> None:
    sent: Manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "llama"},
        "spec": {"template": {"spec": {"containers": [{"name": "server", "image": "a"}]}}},
    }
    live = as_live(sent)
    live["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror/a"
    (found,) = find_differences(live, sent)
    assert found.path == "spec.template.spec.containers[name=server].image"
    assert (found.sent, found.live) == ("a", "mirror/a")


@pytest.mark.parametrize(
    "entries",
    [
        None,
        "text",
        [None],
        ["text"],
        [{}],
        [{"manager": names.FIELD_MANAGER, "operation": "Apply"}],
        *(
            [{"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields}]
            for fields in list[Any](
                (
                    [],
                    "text",
                    {"f:spec": None},
                    {"f:spec": "text"},
                    {"f:spec": {"k:{no json": {}}},
                    {"f:spec": {"f:list": {"k:[1]": {}, "k:null": {}}}},
                    {"f:spec": {"f:list": {"v:1": {}, 'v:"a"': {}, "v:{no json": {}}}},
                    {"f:spec": {"f:list": {"i:0": {}}}},
                    {"f:spec": {"f:list": {"v:1": {}, "f:a": {}}}},
                )
            )
        ),
    ],
)
def test_field_ownership_that_makes_no_sense_is_a_difference(entries: Any) -> None:
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "A",
        "metadata": {"name": "a"},
        "spec": {"list": [1, "a", {"name": "b"}]},
    }
    live = copy.deepcopy(manifest)
    live["metadata"]["managedFields"] = entries
    assert list(find_differences(live, manifest))
    assert say_contest(differing("list"), live)
    assert say_foreign_cause(live, "spec.list: Invalid value: 1") is None


def entry(manager: str, fields: Any, operation: str = "Update", **more: Any) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **more}


IMAGE: Manifest = {"f:spec": {"f:image": {}}}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([entry("kubectl-edit", IMAGE)], "the manager kubectl-edit updates it"),
        ([entry("argocd", IMAGE, "Apply")], "the manager argocd applies it"),
        (
            [entry("old", IMAGE, time="2026-01-01"), entry("new", IMAGE, time="2026-01-02")],
            "the manager new updates it",
        ),
        ([entry("whole", {"f:spec": {}})], "the manager whole updates it"),
        ([entry("", IMAGE)], "the manager without a name updates it"),
        ([entry("status", IMAGE, subresource="status")], "no other manager owns the field"),
        ([entry("other", {"f:spec": {"f:replicas": {}}})], "no other manager owns the field"),
        (
            [entry(names.FIELD_MANAGER, IMAGE, "Apply")],
            "another release of the operator also serves the namespace",
        ),
        ([], "no other manager owns the field"),
    ],
)
def test_a_contest_names_the_field_both_values_and_who_owns_it(
    entries: list[dict[str, Any]], said: str
) -> None:
    live = {"metadata": {"managedFields": entries}}
    told = say_contest(differing("image"), live)
    assert told.startswith('spec.image is "theirs", and the operator has written "ours"')
    assert said in told


def test_a_contest_of_many_fields_stays_short() -> None:
    many = [each for number in range(9) for each in differing(f"f{number}", "x" * 5000)]
    told = say_contest(many, {})
    assert "and 6 more" in told
    assert len(told) < 1500


STRATEGY = (
    'Deployment.apps "llama" is invalid: spec.strategy.rollingUpdate: Forbidden: may not be '
    "specified when strategy `type` is 'Recreate'"
)


def test_a_refusal_for_a_field_of_another_manager_names_that_manager() -> None:
    theirs: Manifest = {"f:spec": {"f:strategy": {"f:rollingUpdate": {"f:maxSurge": {}}}}}
    live = {"metadata": {"managedFields": [entry("gitops", theirs, "Apply")]}}
    told = say_foreign_cause(live, STRATEGY)
    assert told is not None
    assert STRATEGY in told
    assert "The manager gitops owns spec.strategy.rollingUpdate." in told
    ours = {"metadata": {"managedFields": [entry(names.FIELD_MANAGER, theirs, "Apply")]}}
    assert say_foreign_cause(ours, STRATEGY) is None
    assert say_foreign_cause(live, "no field is named") is None


REQUESTS = (
    'Deployment.apps "llama" is invalid: spec.template.spec.containers[1].resources.requests: '
    'Invalid value: "8Gi": must be less than or equal to memory limit of 4Gi'
)


def test_a_refusal_for_an_item_of_a_list_names_the_manager_of_the_item() -> None:
    def live(container: str) -> Manifest:
        theirs: Manifest = {
            f'k:{{"name":"{container}"}}': {"f:resources": {"f:requests": {"f:memory": {}}}}
        }
        fields = {"f:spec": {"f:template": {"f:spec": {"f:containers": theirs}}}}
        containers = [{"name": "proxy"}, {"name": "server"}]
        return {
            "metadata": {"managedFields": [entry("autosizer", fields)]},
            "spec": {"template": {"spec": {"containers": containers}}},
        }

    told = say_foreign_cause(live("server"), REQUESTS)
    assert told is not None
    assert "The manager autosizer owns spec.template.spec.containers.1.resources.requests." in told
    assert say_foreign_cause(live("proxy"), REQUESTS) is None
    assert say_foreign_cause(live("server"), REQUESTS.replace("[1]", "[2]")) is None


def test_many_writes_of_different_manifests_are_limited_and_no_webhook_is_blamed() -> None:
    writes = Writes()
    manifests: list[Manifest] = [{"spec": {"replicas": each}} for each in range(WRITE_BURST + 1)]
    pauses = [writes.try_to(differing("replicas"), each) for each in manifests]
    assert pauses[:-1] == [None] * WRITE_BURST
    assert pauses[-1] is not None
    assert not pauses[-1].is_rewritten
    assert pauses[-1].seconds > 0
