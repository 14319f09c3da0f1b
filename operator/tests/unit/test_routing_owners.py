"""Tests of the record of which replica keeps which object."""

from llmservice_operator.routing.owners import Owners


def test_an_object_is_found_at_its_replica() -> None:
    owners = Owners()
    owners.note("resp_1", "a")
    owners.note("resp_2", "b")
    assert [owners.find(each) for each in ("resp_1", "resp_2", "resp_3")] == ["a", "b", None]


def test_objects_of_a_replica_that_has_ended_are_forgotten() -> None:
    owners = Owners()
    owners.note("resp_1", "a")
    owners.note("resp_2", "b")
    owners.forget("a")
    assert owners.find("resp_1") is None
    assert owners.find("resp_2") == "b"


def test_the_object_that_was_not_used_for_longest_is_forgotten_first() -> None:
    owners = Owners(most=2)
    owners.note("resp_1", "a")
    owners.note("resp_2", "a")
    assert owners.find("resp_1") == "a"
    owners.note("resp_3", "a")
    assert len(owners) == 2
    assert [owners.find(each) for each in ("resp_1", "resp_2", "resp_3")] == ["a", None, "a"]
