"""Tests how four metrics servers share a service, and how they hand it over."""

from dataclasses import dataclass, field

import pytest

from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.sharding import Ring
from operator_support.fleet import KEY, TICK, World

NAMES = frozenset({"a", "b", "c", "d"})


@dataclass
class Release:
    """Metrics servers of a release. The first in `order` is the learner of the service, and the
    second is the follower.
    """

    world: World = field(default_factory=World)
    members: dict[str, Fleet] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        members, order = set(self.members), list[str]()
        while members:
            learner = Ring(members).keepers(KEY)[0]
            members.remove(learner)
            order.append(learner)
        return order

    def add(self, name: str, *, is_ready: bool = True) -> Fleet:
        self.members[name] = self.world.fleet(name=name)
        if is_ready:
            self.world.ready |= {name}
        return self.members[name]

    def remove(self, name: str) -> None:
        del self.members[name]
        self.world.ready -= {name}

    async def run(self, seconds: float, rate: float = 8.0) -> None:
        await self.world.run(seconds, rate, *(self.members[name] for name in self.order))

    def demands(self) -> list[float | None]:
        return [self.members[name].reports[KEY].demand_percent for name in self.order]

    def watchers(self) -> list[str]:
        return [name for name in self.order if self.members[name].watched_reports]


@pytest.fixture
def release() -> Release:
    made = Release()
    for name in ("pod-1", "pod-2"):
        made.world.pods.add(name)
    for name in sorted(NAMES):
        made.add(name)
    return made


async def test_two_metrics_servers_watch_a_service_and_all_report_the_same_load(
    release: Release,
) -> None:
    await release.run(90)

    learner, follower, *_ = release.order
    assert release.watchers() == [learner, follower]
    assert release.demands()[0] is not None
    assert len(set(release.demands())) == 1
    assert [name for name in release.order if release.members[name].learned] == [learner]
    assert release.members[learner].number_of_services() == (1, 0)
    assert release.members[follower].number_of_services() == (0, 1)


async def test_without_an_answer_of_the_learner_all_report_the_load_of_the_follower(
    release: Release,
) -> None:
    await release.run(90)
    learner, follower, third, _ = release.order
    known = release.demands()[0]
    release.world.silent = {learner}

    await release.run(60, 16.0)

    computed = release.members[follower].reports[KEY]
    assert known is not None
    assert computed.demand_percent is not None
    assert computed.demand_percent > 1.5 * known
    assert release.members[third].reports[KEY] == computed


async def test_without_both_watchers_the_last_report_stays_with_its_time(release: Release) -> None:
    await release.run(90)
    learner, follower, third, _ = release.order
    last = release.members[third].reports[KEY]
    release.world.silent = {learner, follower}

    await release.run(120)

    report = release.members[third].reports[KEY]
    assert report == last
    assert report.is_stale(release.world.pods.now)


async def test_a_metrics_server_that_leaves_hands_its_services_over_without_a_gap(
    release: Release,
) -> None:
    await release.run(300)
    learner, follower, third, _ = release.order
    before = release.demands()[0]
    assert before is not None

    release.remove(learner)
    for _ in range(24):
        await release.run(TICK)
        for demand in release.demands():
            assert demand == pytest.approx(before, rel=0.02)

    assert release.watchers() == [follower, third]
    assert [name for name in release.order if release.members[name].learned] == [follower]


async def test_a_metrics_server_knows_the_loads_of_its_services_before_it_is_ready(
    release: Release,
) -> None:
    newcomer = release.order[0]
    release.remove(newcomer)
    await release.run(300)
    before = release.demands()[0]
    assert before is not None

    fleet = release.add(newcomer, is_ready=False)
    await release.run(30)
    assert fleet.lags
    assert fleet.reports[KEY].demand_percent == pytest.approx(before, rel=0.02)
    await release.run(45)
    assert not fleet.lags
    assert fleet.learned == {}

    release.world.ready |= {newcomer}
    for _ in range(24):
        await release.run(TICK)
        for demand in release.demands():
            assert demand == pytest.approx(before, rel=0.02)
    assert list(fleet.learned) == [KEY]
    assert release.watchers() == release.order[:2]


async def test_a_service_that_loses_both_watchers_at_once_keeps_its_replicas(
    release: Release,
) -> None:
    await release.run(300)
    learner, follower, third, _ = release.order
    calibration = release.members[learner].learned[KEY].model_dump(by_alias=True, mode="json")
    release.world.services[0]["status"] = {"autoscaling": {"calibration": calibration}}

    release.remove(learner)
    release.remove(follower)
    await release.run(35, 0.2)
    report = release.members[third].reports[KEY]
    assert (report.demand_percent, report.missing) == (None, "Starting")

    await release.run(40, 0.2)
    report = release.members[third].reports[KEY]
    assert report.demand_percent is not None
    # The load is far below one replica, but nothing remembers what kept both.
    assert report.demand_percent >= 2 * report.target_percent


async def test_a_deleted_service_is_forgotten_by_all(release: Release) -> None:
    await release.run(10)
    release.world.services.clear()
    await release.run(TICK)
    assert all(fleet.reports == {} for fleet in release.members.values())
