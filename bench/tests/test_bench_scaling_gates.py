"""Tests that a gate is PASS only if its figures exist and meet the limit with every seed."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from scaling.gates import Figures, Gate, best_peer, dominated_cells, gates
from scaling.runs import ORACLE, OURS, Result, Run, gate_runs

PEER = "peer"


def result(run: Run) -> Result:
    hours = {OURS: 10.0, ORACLE: 9.5, PEER: 20.0}[run.policy]
    return Result(run, hours, 97.0, 10, 8, 80.0, 100.0, 0, 0, 5)


def results(change: Callable[[Result], Result] = lambda r: r) -> list[Result]:
    return [change(result(run)) for run in gate_runs((PEER,))]


def verdicts(found: list[Result]) -> dict[str, str]:
    return {gate.name: gate.verdict for gate in gates(found)}


def test_all_gates_pass_on_good_figures() -> None:
    assert set(verdicts(results()).values()) == {"PASS"}


def test_gates_without_figures_fail() -> None:
    assert set(verdicts([]).values()) == {"FAIL"}
    assert "missing" in gates([])[0].line


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("gpu_hours_vs_oracle", {"gpu_hours": 30.0}),
        ("slo_mean", {"attainment_percent": 90.0}),
        ("slo_min", {"attainment_percent": 60.0}),
        ("gpu_hours_vs_best_peer", {"gpu_hours": 15.0}),
        ("burst_recovery_60", {"recovery_seconds": 140.0}),
        ("burst_recovery_180", {"recovery_seconds": 280.0}),
        ("scale_events_vs_oracle", {"events": 30}),
        ("requests_cut", {"cut": 1}),
        ("outage_replicas_lost", {"replicas_lost": 1}),
    ],
)
def test_each_gate_fails_on_its_own_figure(gate: str, change: dict[str, float]) -> None:
    found = results(
        lambda r: replace(r, **change) if r.run.policy == OURS else r  # type: ignore[arg-type]
    )

    assert verdicts(found)[gate] == "FAIL"


def test_a_loss_under_a_wrong_prior_fails_its_gate() -> None:
    found = results(lambda r: replace(r, attainment_percent=94.5) if r.run.prior == 1.33 else r)

    assert verdicts(found)["wrong_prior_slo_loss"] == "FAIL"


def test_seeds_that_disagree_are_undecided() -> None:
    assert Gate("x", 10, False, "s", (9.0, 11.0, 9.0)).verdict == "UNDECIDED"
    assert Gate("x", 10, False, "s", (9.0, 10.0, 9.0)).line == "GATE x 9.333s <=10s PASS"


def test_a_peer_that_does_better_in_both_dominates() -> None:
    found = results(
        lambda r: (
            replace(r, gpu_hours=9.0, attainment_percent=98.0)
            if r.run.policy == PEER and r.run.workload == "azure"
            else r
        )
    )

    assert dominated_cells(Figures(found)) == [(("azure", 60.0), PEER), (("azure", 180.0), PEER)]
    assert verdicts(found)["cells_dominated"] == "FAIL"


def test_a_peer_that_hardly_serves_is_not_the_best() -> None:
    found = results(lambda r: replace(r, attainment_percent=80.0) if r.run.policy == PEER else r)

    assert best_peer(Figures(found)) is None
    assert verdicts(found)["gpu_hours_vs_best_peer"] == "FAIL"
