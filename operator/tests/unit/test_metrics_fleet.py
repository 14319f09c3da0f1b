"""Tests rounds over simulated services and pods: reports, the learner and the follower."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.load_report import LoadReport
from llmservice_operator.cluster import Key
from llmservice_operator.engine_metrics import EngineAnswer
from llmservice_operator.metrics_server import fleet as fleet_module
from llmservice_operator.metrics_server import scrapes
from llmservice_operator.metrics_server.fleet import Fleet
from llmservice_operator.metrics_server.registration import NAMESPACES_ONLY
from llmservice_operator.metrics_server.turns import OF_A_NAMESPACE
from llmservice_operator.scaling import assess
from llmservice_operator.scaling.assess import ScalingState
from llmservice_operator.scaling.signals import RouterPod, Scrape
from llmservice_operator.scaling.step_model import StepModel
from llmservice_operator.sharding import Ring
from operator_support.fleet import KEY, START, TICK, BadConnection, Pods, World, service
from operator_support.processes import make_service
from operator_support.scaling import TRUTH, load


@pytest.fixture
def world() -> World:
    made = World()
    made.pods.add("a")
    made.pods.add("b")
    return made


async def test_a_report_holds_the_demand_and_what_every_replica_does(world: World) -> None:
    world.pods.add("c", is_ready=False, phase="downloading")
    fleet = world.fleet()
    await world.run(90, 8, fleet)

    report = fleet.reports[KEY]

    assert report.demand_percent is not None
    assert report.capacity_requests_per_second is not None
    assert report.demand_percent == pytest.approx(
        100 * 8 / report.capacity_requests_per_second, rel=0.02
    )
    assert report.message == f"The load is {report.demand_percent:.0f} % of what one replica" + (
        " sustains."
    )
    first, _, third = report.replicas
    assert (first.pod, first.is_ready, first.phase) == ("a", True, "ready")
    assert first.utilization_percent == pytest.approx(report.demand_percent / 2, rel=0.02)
    assert (third.phase, third.downloaded_bytes, third.total_bytes) == ("downloading", 5, 10)
    assert third.utilization_percent is None
    assert report.attainment_percent == 100
    assert report.ttft_p95_milliseconds == pytest.approx(2**7, rel=0.05)
    assert report.itl_p95_milliseconds == pytest.approx(2**5, rel=0.05)
    assert report.gpu_duty_cycle_percent == 180
    assert report.external_metrics == NAMESPACES_ONLY


async def test_nothing_is_known_in_the_first_minute_or_without_a_ready_replica(
    world: World,
) -> None:
    fleet = world.fleet()
    await world.run(50, 8, fleet)
    assert fleet.reports[KEY].demand_percent is None
    assert fleet.reports[KEY].missing == "Starting"

    await world.run(40, 8, fleet)
    assert fleet.reports[KEY].missing is None
    for server in world.pods.servers.values():
        server.is_ready = False
    await fleet.round(world.pods.now + TICK)
    report = fleet.reports[KEY]
    assert (report.demand_percent, report.missing) == (None, "NoReadyReplica")
    assert report.kv_cache_percent is None


async def test_the_requests_that_the_routers_of_a_service_hold_raise_its_demand(
    world: World,
) -> None:
    world.held[KEY] = 0
    fleet = world.fleet()
    await world.run(90, 8, fleet)
    before = fleet.reports[KEY].demand_percent
    assert before is not None
    world.held[KEY] = 900

    await world.run(TICK, 8, fleet)

    after = fleet.reports[KEY].demand_percent
    assert after is not None
    assert after > before + 30


async def test_a_round_asks_the_routers_and_the_replicas_at_the_same_time(world: World) -> None:
    both_are_asked = asyncio.Barrier(1 + len(world.pods.servers))
    ask, ask_routers = world.pods.ask, world.ask_routers

    async def ask_replica(address: str, *, is_ready: bool) -> EngineAnswer | None:
        await both_are_asked.wait()
        return await ask(address, is_ready=is_ready)

    async def ask_all_routers() -> Mapping[Key, tuple[RouterPod, ...]]:
        await both_are_asked.wait()
        return await ask_routers()

    world.pods.ask, world.ask_routers = ask_replica, ask_all_routers  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        await world.run(TICK, 8, world.fleet())


async def test_the_silent_pods_of_a_tenant_delay_no_other_replica(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrapes, "ROUND_SECONDS", 0.5)
    hung = [f"hung-{number}" for number in range(600)]
    silent, asked = Pods(), set[str]()
    for name in hung:
        silent.add(name)
    their_pods = [
        {**it, "metadata": {**it["metadata"], "namespace": "other"}} for it in silent.manifests()
    ]
    other = {**service(), "metadata": {**service()["metadata"], "namespace": "other"}}
    world.services = [other, *world.services]
    ours, ask = world.pods.manifests, world.pods.ask
    monkeypatch.setattr(world.pods, "manifests", lambda: [*their_pods, *ours()])

    async def ask_replica(address: str, *, is_ready: bool) -> EngineAnswer | None:
        if address in hung:
            asked.add(address)
            await asyncio.Event().wait()
        return await ask(address, is_ready=is_ready)

    monkeypatch.setattr(world.pods, "ask", ask_replica)
    fleet = world.fleet()
    async with asyncio.timeout(60):
        await world.run(4 * TICK, 8, fleet)

    assert all(it.running_requests is not None for it in fleet.reports[KEY].replicas)
    # Those that had no turn in a round are asked in the next one.
    assert len(asked) > 2 * OF_A_NAMESPACE


async def test_a_round_does_not_wait_long_for_a_replica_that_was_silent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrapes, "ROUND_SECONDS", 600.0)
    monkeypatch.setattr(scrapes, "SILENT_SECONDS", 0.01)
    ask, hung, was_silent = world.pods.ask, {"a"}, set[str]()

    async def ask_replica(address: str, *, is_ready: bool) -> EngineAnswer | None:
        if address not in hung:
            return await ask(address, is_ready=is_ready)
        if address in was_silent:
            await asyncio.Event().wait()
        was_silent.add(address)
        return None

    monkeypatch.setattr(world.pods, "ask", ask_replica)
    fleet = world.fleet()
    async with asyncio.timeout(60):
        await world.run(3 * TICK, 8, fleet)
        hung.clear()
        await world.run(TICK, 8, fleet)

    assert all(it.running_requests is not None for it in fleet.reports[KEY].replicas)


@pytest.mark.parametrize(
    ("asked", "is_kept"),
    [
        ({"forecast": "Auto"}, True),
        ({"forecast": "Off"}, False),
        ({"metric": "RequestsWaiting"}, False),
    ],
)
async def test_the_history_of_the_load_is_kept_unless_there_is_no_forecast(
    world: World, asked: dict[str, Any], is_kept: bool
) -> None:
    (scaled,) = world.services
    autoscaling = {"maxReplicas": 4, **asked}
    world.services = [{**scaled, "spec": {**scaled["spec"], "autoscaling": autoscaling}}]
    fleet = world.fleet()
    await world.run(700, 8, fleet)

    assert (fleet.learned[KEY].load_history is not None) is is_kept
    reported = fleet.reports[KEY].calibration
    assert reported is not None
    # The report is read every few seconds, and nobody reads a history of two weeks in it.
    assert reported.load_history is None


async def test_silent_replicas_are_named_and_most_of_them_make_the_load_unknown(
    world: World,
) -> None:
    world.pods.add("c")
    fleet = world.fleet()
    await world.run(90, 12, fleet)

    world.pods.silent = {"a"}
    await world.run(30, 12, fleet)
    report = fleet.reports[KEY]
    assert report.demand_percent is not None
    assert report.missing_replicas == 1
    assert "1 of 3 Ready replicas do not answer" in report.message
    assert report.replicas[0].phase is None

    world.pods.silent = {"a", "b"}
    await world.run(30, 12, fleet)
    report = fleet.reports[KEY]
    assert (report.demand_percent, report.missing) == (None, "ReplicasMissing")
    assert "NetworkPolicy" in report.message


async def test_a_follower_repeats_the_learner_even_where_its_own_answers_differ(
    world: World,
) -> None:
    connection = BadConnection(world.pods)
    learner, follower = world.learner_and_follower(connection)
    await world.run(120, 8, learner, follower)

    connection.silent = {"a"}
    await world.run(90, 8, learner, follower)
    assert follower.reports == learner.reports

    connection.silent = {"a", "b"}
    await world.run(30, 8, learner, follower)
    assert follower.reports == learner.reports


async def test_a_follower_knows_the_load_even_if_the_learner_cannot_reach_the_pods(
    world: World,
) -> None:
    connection = BadConnection(world.pods)
    world.ready = frozenset({"one", "other"})
    first, second = Ring(world.ready).keepers(KEY)
    learner, follower = world.fleet(connection, name=first), world.fleet(name=second)
    await world.run(120, 8, learner, follower)
    before = follower.reports[KEY].demand_percent

    connection.silent = {"a", "b"}
    await world.run(60, 8, learner, follower)

    assert learner.reports[KEY].missing == "ReplicasMissing"
    assert follower.reports[KEY].demand_percent == pytest.approx(before, rel=0.02)


async def test_a_request_for_an_unfinished_round_gets_its_reports_at_the_end(
    world: World,
) -> None:
    fleet = world.fleet()
    await world.run(TICK, 8, fleet)
    at = world.pods.now + TICK
    early = asyncio.create_task(fleet.reports_as_of(at))
    done, _ = await asyncio.wait([early], timeout=0.01)
    assert not done

    await world.run(TICK, 8, fleet)

    assert (await early)[KEY].at == at
    assert (await fleet.reports_as_of(at - TICK))[KEY].at == at


def computed(fleet: Fleet, world: World) -> LoadReport:
    """Return the report that a fleet has computed, even if it repeats another one."""
    return fleet.computed_for(world.ready)[KEY]


async def test_a_follower_computes_the_load_with_the_learners_calibration(
    world: World,
) -> None:
    learner, follower = world.learner_and_follower()
    await world.run(300, 8, learner)
    # Both must know the five minutes from which a trend follows.
    for seconds, rate in ((300, 8), (90, 10), (90, 12)):
        await world.run(seconds, rate, learner, follower)

        ours, theirs = learner.reports[KEY], computed(follower, world)
        assert ours.demand_percent is not None
        assert theirs.demand_percent == pytest.approx(ours.demand_percent, rel=0.02)
        assert theirs.capacity_factor == ours.capacity_factor


async def test_a_follower_assesses_each_scrape_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, follower = world.learner_and_follower()
    await world.run(90, 8, learner, follower)
    assessed: list[float] = []

    def count(state: ScalingState, scrape: Scrape, *args: Any, **more: Any) -> Any:
        assessed.append(scrape.at)
        return assess.assess(state, scrape, *args, **more)

    monkeypatch.setattr(fleet_module, "assess", count)
    await world.run(3 * TICK, 8, follower)

    assert len(assessed) == len(set(assessed)) == 3


@pytest.mark.parametrize("known_before", [0, 120])
async def test_a_follower_that_misses_a_replica_computes_the_load_of_the_learner(
    world: World, known_before: int
) -> None:
    connection = BadConnection(world.pods)
    learner, follower = world.learner_and_follower(connection)
    await world.run(300, 20, learner)
    await world.run(known_before, 20, learner, follower)

    connection.silent = {"b"}
    await world.run(90, 20, learner, follower)
    assert computed(follower, world).missing_replicas == 1

    connection.silent.clear()
    await world.run(TICK, 20, learner, follower)
    for _ in range(12):
        await world.run(TICK, 20, learner, follower)
        ours, theirs = learner.reports[KEY], computed(follower, world)
        assert ours.demand_percent is not None
        assert theirs.demand_percent == pytest.approx(ours.demand_percent, rel=0.02)


async def test_a_silent_replica_is_counted_at_the_services_own_target(world: World) -> None:
    world.services[0]["spec"]["autoscaling"] = {"maxReplicas": 4, "targetGPUUtilization": 50}
    world.services[0]["metadata"]["generation"] = 2
    fleet = world.fleet()
    await world.run(300, 0.5, fleet)
    known = fleet.reports[KEY].demand_percent

    world.pods.silent = {"a"}
    await world.run(120, 0.5, fleet)

    assert known is not None
    assert known < 100
    assert fleet.reports[KEY].demand_percent == pytest.approx(known / 2 + 50, rel=0.01)


async def test_a_new_follower_lags_until_it_knows_what_the_learner_knows(world: World) -> None:
    learner, together = world.learner_and_follower()
    await world.run(30, 8, learner, together)
    assert not together.lags

    await world.run(60, 8, learner, together)
    later = world.fleet(name=Ring(world.ready).keepers(KEY)[1])
    await world.run(55, 8, learner, later)
    assert later.lags
    await world.run(10, 8, learner, later)
    assert not later.lags


async def test_a_service_without_pods_delays_no_follower(world: World) -> None:
    learner, follower = world.learner_and_follower()
    await world.run(120, 8, learner)
    world.pods.servers.clear()

    await world.run(30, 0, learner, follower)

    assert learner.reports[KEY].missing == "NoReadyReplica"
    assert not follower.lags


async def test_a_follower_continues_alone_when_the_learner_is_gone(world: World) -> None:
    learner, follower = world.learner_and_follower()
    await world.run(120, 8, learner, follower)
    before = follower.reports[KEY].demand_percent
    assert before is not None

    await world.run(60, 8, follower)

    assert follower.reports[KEY].demand_percent == pytest.approx(before, rel=0.05)


async def test_a_new_process_begins_with_the_calibration_in_the_status(world: World) -> None:
    first = world.fleet()
    await world.run(300, 8, first)
    calibration = first.learned[KEY].model_dump(by_alias=True, mode="json")
    world.services = [service(autoscaling={"calibration": calibration})]

    second = world.fleet()
    await second.round(world.pods.now + TICK)

    found = second.reports[KEY].calibration
    assert found is not None
    assert found.step_seconds == pytest.approx(calibration["stepSeconds"], rel=0.01)


def serving_other(model: str) -> Manifest:
    made = service()
    made["metadata"]["generation"] = 2
    made["spec"]["model"]["uri"] = model
    return made


@pytest.mark.parametrize(("model", "learns_anew"), [("hf://other/model", True), (None, False)])
async def test_another_model_is_learned_anew_and_from_its_own_replicas_alone(
    world: World, model: str | None, learns_anew: bool
) -> None:
    fleet = world.fleet()
    await world.run(600, 8, fleet)
    before = fleet.learned[KEY].step_seconds
    world.services = [serving_other(model or world.services[0]["spec"]["model"]["uri"])]
    await world.run(TICK, 8, fleet)
    # Nothing is forgotten yet, because the new model may be as fast as the old one.
    assert fleet.learned[KEY].step_seconds == pytest.approx(before, rel=0.2)

    for name in ("new-a", "new-b"):
        world.pods.add(name)
    await world.run(30, 8, fleet)
    for name in ("a", "b"):
        del world.pods.servers[name]
    world.pods.model = TRUTH.scaled(10)
    await world.run(60 + 60, 8, fleet)

    now = load(4, TICK).steps
    factor = StepModel(*fleet.learned[KEY].step_seconds).seconds_of(now) / now.seconds
    assert (factor > 8) is learns_anew


async def test_a_recreated_service_is_learned_anew(world: World) -> None:
    fleet = world.fleet()
    await world.run(90, 8, fleet)
    assert fleet.reports[KEY].missing is None

    world.services[0]["metadata"]["uid"] = "uid-2"
    await world.run(10, 8, fleet)
    assert fleet.reports[KEY].missing == "Starting"

    world.services.clear()
    await world.run(5, 8, fleet)
    assert fleet.reports == {}
    assert fleet.learned == {}


async def test_pods_that_have_ended_or_belong_to_no_service_are_not_queried(world: World) -> None:
    fleet = world.fleet()
    evicted, orphan = world.pods.manifests()
    evicted["status"]["phase"] = "Failed"
    orphan["metadata"]["labels"] = {names.SERVICE_LABEL: "unknown"}
    strange = Fleet(
        lambda: world.services, lambda: [evicted, orphan], world.pods, lambda: NAMESPACES_ONLY, {}
    )
    await strange.round(START + TICK)

    assert strange.reports[KEY].replicas == ()
    assert fleet.reports == {}


async def test_one_service_with_senseless_numbers_does_not_silence_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_service("other", KEY[0])
    other["metadata"]["uid"] = "uid-9"
    world.services.insert(0, other)
    fleet = world.fleet()

    def failing(state: Any, scrape: Any, *aim: Any, **switches: Any) -> Any:
        if not scrape.replicas:
            raise ZeroDivisionError
        return assess.assess(state, scrape, *aim, **switches)

    monkeypatch.setattr("llmservice_operator.metrics_server.fleet.assess", failing)
    await fleet.round(START + TICK)

    assert fleet.reports.keys() == {KEY}
