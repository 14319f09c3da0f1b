"""Tests the unseen workloads of the bench: their traffic, their disturbances and their gates."""

from dataclasses import replace

import numpy as np
import pytest

from scaling.engine import GENERATED
from scaling.gates import Gate
from scaling.ours import Ours
from scaling.runs import ORACLE, OURS, SEEDS, Result, Run, unseen_runs
from scaling.simulation import HUNG_SECONDS, Pod, Scenario, Simulation
from scaling.unseen import CONSTANT, UNSEEN
from scaling.unseen_gates import unseen_gates
from scaling.workloads import Traffic, Workload

BY_NAME = {workload.name: workload for workload in UNSEEN}
LOCAL = CONSTANT[0]


class Fixed:
    """Policy that keeps the replicas."""

    def step(self, view: Simulation) -> int | None:
        return None

    def victim_order(self, view: Simulation, pods: list[Pod]) -> list[Pod]:
        return pods


def traffic(workload: Workload, seconds: float) -> Traffic:
    """Return the first part of the traffic."""
    whole = workload.make(np.random.default_rng(3))
    inside = whole.arrival < seconds
    return Traffic(
        whole.arrival[inside],
        whole.prompt[inside],
        whole.answer[inside],
        whole.cached[inside],
        seconds,
    )


@pytest.mark.parametrize(
    "workload",
    [it for it in (*UNSEEN, CONSTANT[-1]) if it.needs is None],
    ids=lambda w: w.name,
)
def test_a_seed_makes_the_same_traffic_in_order_of_arrival(workload: Workload) -> None:
    one, other = (workload.make(np.random.default_rng(3)) for _ in range(2))

    assert np.all(np.diff(one.arrival) >= 0)
    assert np.all(one.cached < one.prompt)
    for name in ("arrival", "prompt", "answer", "cached"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_hung_engine_generates_nothing_more_and_stays_ready_until_it_is_restarted() -> None:
    workload = BY_NAME["hung-replica"]
    simulation = Simulation(workload, traffic(workload, 120), Scenario(60.0, 1, 6, hung_at=60.0))
    hung = simulation.pods[0]
    simulation.run(Fixed())

    assert hung.is_ready
    assert simulation.fleet.running[hung.engine] > 0
    others = [pod.engine for pod in simulation.pods if pod is not hung]
    generated = simulation.fleet.totals[:, GENERATED]
    assert generated[hung.engine] < 0.75 * np.min(generated[others])


def test_the_model_server_of_a_hung_engine_is_restarted_with_counters_of_its_own() -> None:
    workload = BY_NAME["hung-replica"]
    seconds = 60.0 + HUNG_SECONDS + 80
    simulation = Simulation(workload, traffic(workload, seconds), Scenario(60.0, 1, 6, hung_at=60))
    hung = simulation.pods[0]
    simulation.run(Fixed())

    assert hung.started == 60 + HUNG_SECONDS
    assert hung.is_ready
    assert hung.ready_at is not None
    assert hung.ready_at > hung.started
    assert simulation.fleet.running[hung.engine] > 0
    generated = simulation.fleet.totals[:, GENERATED]
    assert 0 < generated[hung.engine] < 0.3 * np.max(generated)


def test_scale_ups_are_counted_apart_from_all_changes() -> None:
    class Steps(Fixed):
        def step(self, view: Simulation) -> int | None:
            return {310.0: 3, 320.0: 4, 330.0: 2}.get(view.now)

    workload = BY_NAME["hung-replica"]
    simulation = Simulation(workload, traffic(workload, 340), Scenario(60.0, 1, 2)).run(Steps())

    assert (simulation.scale_ups, simulation.events) == (2, 3)


def test_a_metrics_server_that_restarts_knows_only_the_stored_calibration() -> None:
    workload = BY_NAME["restart-in-burst"]
    policy = Ours()
    scenario = Scenario(60.0, 1, 3, restart=(150.0, 170.0))
    Simulation(workload, traffic(workload, 176), scenario).run(policy)

    assert policy.stored is not None
    assert policy.state is not None
    assert policy.state.first_at == 170
    assert policy.state.factor.value == policy.stored.capacity_factor


def result(run: Run) -> Result:
    return Result(run, 10.0, 97.0, 0, 1, 50.0, 0.0, 0, 0, 1)


def all_results() -> list[Result]:
    beside = [
        Run(workload.name, 60.0, policy, seed, event=workload.event)
        for workload in UNSEEN
        for policy in (OURS, ORACLE, "peer")
        for seed in SEEDS
    ]
    alone = [
        Run(workload.name, 60.0, OURS, seed)
        for workload in (*UNSEEN, *CONSTANT)
        if workload.event or workload in CONSTANT
        for seed in SEEDS
    ]
    return [result(run) for run in (*beside, *alone)]


def test_our_policy_also_runs_without_the_disturbances_and_the_constant_workloads() -> None:
    runs = set(unseen_runs(("peer",), SEEDS))

    wanted = {
        it.run
        for it in all_results()
        if it.run.policy == OURS and BY_NAME.get(it.run.workload, LOCAL).needs is None
    }
    assert wanted <= runs


def gates_of(results: list[Result]) -> dict[str, Gate]:
    return {gate.name: gate for gate in unseen_gates(results)}


def test_equal_figures_pass_the_unseen_gates() -> None:
    assert {gate.verdict for gate in gates_of(all_results()).values()} == {"PASS"}


def test_the_unseen_gates_miss_without_the_results_of_a_workload() -> None:
    some = [it for it in all_results() if it.run.workload != "mooncake"]

    missed = {name for name, gate in gates_of(some).items() if gate.verdict == "FAIL"}
    assert missed == {"unseen_dominated", "unseen_slo", "unseen_gpu_hours_vs_oracle"}


@pytest.mark.parametrize(
    ("gate", "workload", "change"),
    [
        ("constant_load_events", "constant-cached", {"scale_ups": 3}),
        ("recovery_after_restart", "restart-in-burst", {"attainment_percent": 94.9}),
        ("hung_replica", "hung-replica", {"attainment_percent": 93.9}),
    ],
)
def test_each_further_gate_fails_on_its_own_figure(
    gate: str, workload: str, change: dict[str, float]
) -> None:
    event = BY_NAME[workload].event if workload in BY_NAME else ""
    results = [
        replace(it, **change)  # type: ignore[arg-type]
        if (it.run.workload, it.run.policy, it.run.event) == (workload, OURS, event)
        else it
        for it in all_results()
    ]

    failed = {name for name, it in gates_of(results).items() if it.verdict == "FAIL"}
    assert failed == {gate}
    without = [it for it in results if (it.run.workload, it.run.event) != (workload, "")]
    assert gates_of(without)[gate].verdict == "FAIL"


def test_a_cheaper_peer_that_attains_more_dominates_a_workload() -> None:
    results = [
        replace(it, gpu_hours=9, attainment_percent=98)
        if (it.run.policy, it.run.workload) == ("peer", "whale")
        else it
        for it in all_results()
    ]

    assert gates_of(results)["unseen_dominated"].values == (1.0,)


def test_a_workload_that_the_oracle_does_not_serve_has_no_limit_of_the_slo() -> None:
    results = [
        replace(it, attainment_percent=80) if it.run.workload == "mooncake" else it
        for it in all_results()
    ]

    assert gates_of(results)["unseen_slo"].verdict == "PASS"
