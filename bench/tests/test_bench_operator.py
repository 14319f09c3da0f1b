"""Tests that the operator's bench judges its figures, and reads each change in the right object."""

import math
import random

import pytest

from llmservice_operator.kinds import DEPLOYMENTS
from operator_bench.figures import Cell
from operator_bench.gates import GATES, Figure, Gate, lines, quantile
from operator_bench.report import rows
from operator_bench.services import (
    build_service,
    children_of,
    clients_of,
    has_ready_replica,
    keys,
    round_of,
)

GOOD = {
    100: Cell(100, cpu_ms_per_service=10.0),
    1000: Cell(
        1000,
        plain_create_seconds=20.0,
        plain_delete_seconds=20.0,
        create_seconds=39.0,
        delete_seconds=25.0,
        restart_seconds=20.0,
        restart_writes=0.0,
        rss_mib=150.0,
        idle_requests_per_second=0.2,
        event_ms={
            name: [100.0] * 300 for name in ("quiet", "metrics server hangs", "webhook hangs")
        },
    ),
    5000: Cell(5000, cpu_ms_per_service=12.0, rss_mib=400.0),
}
BAD = {
    100: Cell(100, cpu_ms_per_service=10.0),
    1000: Cell(
        1000,
        plain_create_seconds=20.0,
        plain_delete_seconds=20.0,
        create_seconds=41.0,
        delete_seconds=27.0,
        restart_seconds=61.0,
        restart_writes=1.0,
        rss_mib=161.0,
        idle_requests_per_second=2.1,
        event_ms={
            name: [600.0] * 300 for name in ("quiet", "metrics server hangs", "webhook hangs")
        },
    ),
    5000: Cell(5000, cpu_ms_per_service=14.0, rss_mib=513.0),
}


def verdicts(cells: dict[int, Cell]) -> dict[str, str]:
    return {line.split()[1]: line.split()[-1] for line in lines(cells)}


def test_every_gate_passes_below_its_limit_and_fails_above_it() -> None:
    assert verdicts(GOOD) == dict.fromkeys((gate.name for gate in GATES), "PASS")
    assert verdicts(BAD) == dict.fromkeys((gate.name for gate in GATES), "FAIL")


@pytest.mark.parametrize("cells", [{}, {10: Cell(10)}, {1000: Cell(1000), 5000: Cell(5000)}])
def test_a_gate_that_was_not_measured_is_printed_and_has_failed(cells: dict[int, Cell]) -> None:
    assert verdicts(cells) == dict.fromkeys((gate.name for gate in GATES), "FAIL")
    assert all("missing" in line for line in lines(cells))


def test_a_gate_is_undecided_while_its_limit_is_inside_the_interval() -> None:
    gate = Gate("slow", 500.0, lambda _: Figure(450.0, 400.0, 520.0))
    assert gate.line({}) == "GATE slow 450 [400, 520] 500 UNDECIDED"


def test_the_interval_of_a_quantile_contains_the_true_one_in_nine_of_ten_samples() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(400):
        found = quantile([draw.random() for _ in range(300)], 0.95)
        assert found is not None
        hits += found.low <= 0.95 <= found.high
    assert 0.87 * 400 <= hits <= 400


def test_few_values_say_nothing_of_the_upper_end_of_a_high_quantile() -> None:
    found = quantile([1.0] * 20, 0.95)
    assert found is not None
    assert found.high == math.inf
    assert quantile([], 0.95) is None


def test_a_figure_that_is_missing_is_an_empty_cell_of_the_table() -> None:
    (row,) = rows([Cell(10, create_seconds=2.0)])
    assert row["services"] == 10
    assert row["create s"] == 2.0
    assert {row[name] for name in row if name not in ("services", "create s")} == {""}


def stored(number: int) -> dict[str, object]:
    manifest = build_service(number, keys(100)[number])
    return {**manifest, "metadata": {**manifest["metadata"], "uid": "u", "generation": 1}}


def test_the_bare_client_applies_what_the_operator_makes_with_its_owner() -> None:
    kinds = [child["kind"] for child in children_of(stored(1))]
    assert DEPLOYMENTS.kind in kinds
    assert len(kinds) >= 4
    assert "HorizontalPodAutoscaler" not in kinds
    assert "HorizontalPodAutoscaler" in [child["kind"] for child in children_of(stored(0))]
    owners = [child["metadata"]["ownerReferences"][0]["uid"] for child in children_of(stored(1))]
    assert owners == ["u"] * len(kinds)


def test_a_change_of_a_service_shows_in_its_network_policy_alone() -> None:
    before, after = stored(1), stored(1)
    after["spec"] = {**build_service(1, keys(100)[1])["spec"], "networkPolicy": clients_of(7)}
    pairs = zip(children_of(before), children_of(after), strict=True)
    changed = [new for old, new in pairs if old != new]
    assert [child["kind"] for child in changed] == ["NetworkPolicy"]
    assert round_of(changed[0]) == "7"
    assert round_of(children_of(before)[0]) == "0"


def test_a_replica_counts_only_in_the_status_of_the_present_spec() -> None:
    manifest = stored(1)
    assert not has_ready_replica(manifest)
    assert has_ready_replica({**manifest, "status": {"observedGeneration": 1, "readyReplicas": 1}})
    assert not has_ready_replica(
        {**manifest, "status": {"observedGeneration": 0, "readyReplicas": 1}}
    )
