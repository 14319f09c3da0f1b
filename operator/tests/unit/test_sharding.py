"""Tests how services are shared among the metrics servers."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmservice_operator.sharding import Key, Ring, Shares

SERVICES = [(f"team-{number % 50}", f"service-{number}") for number in range(5000)]
MEMBERS = [f"10.0.{number}.7:8081" for number in range(10)]

members = st.lists(st.sampled_from(MEMBERS), min_size=1, unique=True)
keys = st.tuples(st.text(max_size=20), st.text(max_size=20))


@pytest.mark.parametrize("number", [2, 3, 4, 10])
def test_each_member_learns_and_follows_about_the_same_number_of_services(number: int) -> None:
    ring = Ring(MEMBERS[:number])
    learners = Counter(ring.keepers(key)[0] for key in SERVICES)
    followers = Counter(ring.keepers(key)[1] for key in SERVICES)
    for counted in (learners, followers):
        assert set(counted) == set(MEMBERS[:number])
        # Five standard deviations of a fair choice.
        fair, share = len(SERVICES) / number, 1 / number
        allowed = 5 * (len(SERVICES) * share * (1 - share)) ** 0.5
        assert all(abs(each - fair) < allowed for each in counted.values())


@given(members, keys)
def test_a_service_has_a_learner_and_another_follower(names: list[str], key: Key) -> None:
    keepers = Ring(names).keepers(key)
    assert len(keepers) == len(set(keepers)) == min(2, len(names))
    assert set(keepers) <= set(names)
    assert keepers == Ring(reversed(names)).keepers(key)


@given(members, keys, st.data())
def test_a_member_that_leaves_moves_only_its_own_services_and_its_follower_takes_over(
    names: list[str], key: Key, data: st.DataObject
) -> None:
    before = Ring(names).keepers(key)
    gone = data.draw(st.sampled_from(names))
    after = Ring(set(names) - {gone}).keepers(key)
    stays = [each for each in before if each != gone]
    assert list(after[: len(stays)]) == stays


def test_a_fifth_member_takes_a_fifth_of_the_services() -> None:
    before, after = Ring(MEMBERS[:4]), Ring(MEMBERS[:5])
    moved = [key for key in SERVICES if before.keepers(key)[0] != after.keepers(key)[0]]
    assert all(after.keepers(key)[0] == MEMBERS[4] for key in moved)
    assert len(moved) == pytest.approx(len(SERVICES) / 5, rel=0.15)
    # The learner of before knows the load, and is the follower.
    assert all(after.keepers(key)[1] == before.keepers(key)[0] for key in moved)


def test_a_metrics_server_alone_has_all_services() -> None:
    alone = Shares("me")
    assert all(alone.leads(key) and alone.keeps(key) for key in SERVICES)
    assert alone.others == ()
    assert not alone.are_divided


def test_one_of_two_watches_all_services_and_learns_half_of_them() -> None:
    shares = Shares("me", frozenset({"me", "other"}))
    assert all(shares.keeps(key) for key in SERVICES)
    assert sum(shares.leads(key) for key in SERVICES) == pytest.approx(2500, rel=0.1)
    assert not shares.are_divided


def test_one_that_is_not_ready_watches_its_future_services_and_leads_none() -> None:
    ready = frozenset(MEMBERS[:3])
    coming, later = Shares("me", ready), Shares("me", ready | {"me"})
    assert not any(coming.leads(key) for key in SERVICES)
    assert [key for key in SERVICES if coming.keeps(key)] == [
        key for key in SERVICES if later.keeps(key)
    ]
    assert coming.are_divided
    assert sorted(coming.others) == MEMBERS[:3]
