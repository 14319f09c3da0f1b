"""Tests the routings of the scaling bench, and the choice of a routing for each run."""

from itertools import pairwise

import numpy as np
import pytest

from routing.fleet import SLO, Service
from routing.ours import Ours as ProductRouter
from routing.traces import Trace
from scaling.choices import Router, Routing, new_router
from scaling.dispatch import run_until
from scaling.engine import Array, Fleet, Requests, enqueue, new_fleet, new_requests, seed_noise
from scaling.gates import Figures
from scaling.hardware import H100
from scaling.ours import Ours
from scaling.runs import (
    GATE_ROUTING,
    NEAREST,
    ORACLE,
    OURS,
    SHIPPED,
    WITH_ROUTER,
    Result,
    Run,
    gate_runs,
    matrix_runs,
    peer_names,
    policy_of,
    shipped_runs,
)
from scaling.simulation import Pod, Scenario, Simulation
from scaling.workloads import Traffic, Workload, lognormal, traffic_of

STEP = np.array([0.01, 1e-5, 1e-5, 1e-8, 0.0])
LIMITS = np.array([8, 100_000, 512, 0])


class Proxy:
    """Engines, and requests that reach them by a routing."""

    def __init__(
        self,
        routing: Routing,
        prompts: list[int],
        *,
        answer: int = 50,
        every: float = 0.0,
        engines: int = 4,
        slo: Array = SLO,
    ) -> None:
        count = len(prompts)
        answers, zeros = np.full(count, answer, np.int64), np.zeros(count, np.int64)
        self.requests: Requests = new_requests(
            every * np.arange(count), np.array(prompts, np.int64), answers, zeros
        )
        self.fleet: Fleet = new_fleet(engines, int(LIMITS[0]))
        self.fleet.routable[:] = 1
        self.router: Router = new_router(routing, answers)
        self.slo, self.first = slo, 0
        seed_noise(1)

    def run(self, until: float) -> "Proxy":
        active = np.arange(len(self.fleet.clock))
        self.first = run_until(
            self.requests,
            self.fleet,
            self.router,
            active,
            self.first,
            until,
            STEP,
            LIMITS,
            self.slo,
        )
        return self

    @property
    def loads(self) -> list[int]:
        found: list[int] = (self.fleet.running + self.fleet.waiting).tolist()
        return found


@pytest.mark.parametrize("routing", Routing)
def test_every_request_is_answered_whole_by_every_routing(routing: Routing) -> None:
    lengths = np.random.default_rng(3).integers(1, 3000, 400).tolist()

    proxy = Proxy(routing, lengths, every=0.01)
    for until in range(1, 200):
        proxy.run(until)

    assert np.all(proxy.requests.generated == 50)
    assert proxy.router.held == 0
    assert proxy.loads == [0, 0, 0, 0]
    assert proxy.fleet.to_compute.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("routing", Routing)
def test_a_seed_routes_the_same_requests_to_the_same_engines(routing: Routing) -> None:
    lengths = np.random.default_rng(3).integers(1, 3000, 200).tolist()

    one, other = (Proxy(routing, lengths, every=0.01).run(3) for _ in range(2))

    assert one.loads == other.loads
    assert np.array_equal(one.requests.first_token, other.requests.first_token)


@pytest.mark.parametrize("routing", Routing)
def test_an_engine_that_is_not_routable_gets_no_request(routing: Routing) -> None:
    proxy = Proxy(routing, [100] * 40)
    proxy.fleet.routable[2] = 0

    proxy.run(0.001)

    assert proxy.loads[2] == 0
    assert sum(proxy.loads) + proxy.router.held == 40


def test_the_more_a_routing_knows_the_more_evenly_it_spreads_the_requests() -> None:
    spreads = [
        np.ptp(Proxy(routing, [100] * 400).run(0.001).loads)
        for routing in (Routing.RANDOM, Routing.BETTER_OF_TWO, Routing.LEAST_REQUESTS)
    ]

    assert all(more > less for more, less in pairwise(spreads))
    assert spreads[-1] == 0


def test_the_prompts_to_be_computed_are_those_of_all_queued_requests() -> None:
    proxy = Proxy(Routing.LEAST_REQUESTS, [900, 300, 400, 800, 1000], engines=2).run(0.001)

    left = proxy.requests.to_compute
    assert proxy.fleet.to_compute.sum() == left.sum()
    assert 0 < left.sum() < 3400


def test_a_long_prompt_sends_the_next_requests_to_other_engines() -> None:
    prompts = [5000, 10, 10, 10]

    by_tokens = Proxy(Routing.LEAST_PROMPT_TOKENS, prompts, engines=2).run(0.001)

    assert sorted(by_tokens.loads) == [1, 3]
    assert sorted(Proxy(Routing.LEAST_REQUESTS, prompts, engines=2).run(0.001).loads) == [2, 2]


def test_a_long_context_in_progress_counts_by_its_tokens() -> None:
    # The first prompt is computed before the others arrive.
    prompts = [5000, 10, 10, 10]

    all_tokens = Proxy(Routing.LEAST_TOKENS, prompts, every=0.15, engines=2, answer=500).run(0.5)

    assert sorted(all_tokens.loads) == [1, 3]


def test_flow_control_holds_requests_while_the_engines_are_saturated() -> None:
    proxy = Proxy(Routing.FLOW_CONTROL, [500] * 200).run(0.001)

    assert max(proxy.loads) < 10
    assert proxy.router.held == 200 - sum(proxy.loads)
    proxy.run(30)
    assert proxy.router.held == 0
    assert np.all(np.diff(proxy.requests.first_token[-50:]) > -0.5)


def test_the_router_holds_a_late_request_and_lets_a_short_one_pass() -> None:
    proxy = Proxy(Routing.ROUTER, [6000] * 30 + [20], every=0.01, engines=2, slo=np.array([0.5, 1]))

    proxy.run(0.4)
    assert proxy.router.held > 5
    assert proxy.router.begun == proxy.router.held
    proxy.run(10)

    waits = proxy.requests.first_token - proxy.requests.arrival
    assert waits[-1] < 0.5
    assert np.max(waits[:-1]) > 1
    assert proxy.router.held == 0


def conversation(count: int, rate: float) -> Trace:
    rng = np.random.default_rng(5)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, count)),
        lognormal(rng, 1100, 1.0, 8, 8000, count),
        lognormal(rng, 210, 0.8, 2, 1500, count),
        np.zeros(count + 1, np.int64),
        np.zeros(0, np.int64),
        np.zeros(count, np.int64),
    )


@pytest.mark.parametrize("rate", [56, 68])
def test_the_simulated_router_serves_and_holds_about_as_many_requests_as_that_of_the_product(
    rate: float,
) -> None:
    trace, replicas = conversation(2500, rate), 4
    product = ProductRouter()
    service = Service(trace, H100, replicas, 820).run(product)
    assert product.holding is not None

    zeros = np.zeros(len(trace.arrival), np.int64)
    requests = new_requests(trace.arrival, trace.prompt, trace.answer, zeros)
    fleet, router = new_fleet(replicas, 256), new_router(Routing.ROUTER, trace.answer)
    fleet.routable[:] = 1
    seed_noise(1)
    first, active = 0, np.arange(replicas)
    step, limits = H100.step_array, H100.limits_array
    for until in np.arange(1, trace.arrival[-1] + 30):
        first = run_until(requests, fleet, router, active, first, until, step, limits, SLO)

    in_time = (requests.first_token >= 0) & (requests.first_token - trace.arrival <= SLO[0])
    assert 100 * np.mean(in_time) == pytest.approx(service.attainment_percent, abs=2)
    assert router.begun == pytest.approx(product.holding.counts.arrived, rel=0.3, abs=10)


class Fixed:
    """Policy that keeps the replicas."""

    def step(self, view: Simulation) -> int | None:
        return None

    def victim_order(self, view: Simulation, pods: list[Pod]) -> list[Pod]:
        return pods


def flood() -> Traffic:
    count = 4000
    lengths = np.full(count, 1000)
    return traffic_of(np.linspace(1, 40, count), lengths, np.full(count, 100), 41.0)


FLOOD = Workload("flood", H100, 4, lambda _: flood())


def test_the_service_reports_the_requests_that_wait_in_the_router() -> None:
    served = Simulation(FLOOD, flood(), Scenario(60.0, 1, 2), Routing.ROUTER).run(Fixed())
    plain = Simulation(FLOOD, flood(), Scenario(60.0, 1, 2)).run(Fixed())

    assert served.held == served.router.held > 1000
    assert served.waited >= served.held
    assert plain.held == plain.waited == 0
    assert served.history[-1][3] == pytest.approx(
        served.held + np.sum(served.fleet.running) + np.sum(served.fleet.waiting)
    )


def test_ours_hears_from_a_router_only_if_there_is_one() -> None:
    for routing, has_router in ((WITH_ROUTER, True), (SHIPPED[OURS], False)):
        simulation = Simulation(FLOOD, flood(), Scenario(60.0, 1, 2), routing)
        run = Run("burst", 60.0, OURS, 1, routing=routing)

        policy = policy_of(run, None, FLOOD)  # type: ignore[arg-type]

        assert isinstance(policy, Ours)
        assert policy.has_router == has_router
        simulation.run(policy)
        assert policy.state is not None


def test_every_policy_has_a_shipped_routing() -> None:
    assert SHIPPED.keys() == {OURS, ORACLE, *peer_names()}
    assert set(NEAREST) < set(peer_names())


def test_the_gates_compare_all_policies_with_one_routing() -> None:
    assert {run.routing for run in gate_runs(("peer",))} == {GATE_ROUTING}
    held = [run for run in gate_runs(("llm-d-held",)) if run.policy == "llm-d-held"]
    assert {run.routing for run in held} == {Routing.FLOW_CONTROL}
    other = Result(Run("burst", 60.0, OURS, 1, routing=Routing.RANDOM), 1, 1, 1, 1, 1, 1, 1, 1, 1)
    assert Figures([other]).results == ()


def test_ours_and_the_nearest_peers_run_every_gate_cell_as_they_are_shipped() -> None:
    found: dict[tuple[str, Routing], int] = {}
    for run in shipped_runs():
        found[run.policy, run.routing] = found.get((run.policy, run.routing), 0) + 1

    wanted = {(name, SHIPPED[name]) for name in (OURS, *NEAREST)} | {(OURS, WITH_ROUTER)}
    assert found == dict.fromkeys(wanted, 12)


def test_the_matrix_has_a_run_for_every_policy_with_every_routing() -> None:
    runs = list(matrix_runs(("burst", "hung-replica"), (OURS, "peer")))

    assert len(set(runs)) == len(runs) == 2 * 2 * len(Routing)
    assert {run.event for run in runs if run.workload == "hung-replica"} == {"hung"}


def test_waiting_requests_are_sent_in_order_of_arrival_when_an_engine_has_room() -> None:
    proxy = Proxy(Routing.FLOW_CONTROL, [500] * 60, engines=1)
    for request in range(10):
        enqueue(proxy.requests, proxy.fleet, 0, request)
    proxy.first = 10

    proxy.run(0.001)
    assert proxy.router.held == 50
    proxy.run(30)

    assert np.all(np.diff(proxy.requests.first_token) >= 0)
