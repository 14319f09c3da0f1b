"""Tests the figures and gates of the benchmark of the metrics server."""

from dataclasses import replace

import pytest

from llmservice_operator.kinds import LLMSERVICES, PODS
from llmservice_operator.sharding import Shares
from scrape.cluster import cache_of, keys_of
from scrape.gates import Figures, lines_of_cell, lines_of_group, lines_of_one
from scrape.member import Plan, State
from scrape.servers import address_of

MEMBERS = ("10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1")
PLAN = Plan(10, 20, 4, 9090, MEMBERS[0], MEMBERS)
BEFORE = State(rounds=3, cpu_seconds=5.0, rss_mib=300.0, oldest_answer_seconds=99.0)
AFTER = State(rounds=9, cpu_seconds=20.0, rss_mib=200.0, oldest_answer_seconds=9.0, known=8)


def asked_of_my_share() -> dict[str, list[float]]:
    shares, keys = Shares(PLAN.me, frozenset(MEMBERS)), list(keys_of(PLAN.services))
    return {
        address_of(each, answers=each >= PLAN.silent): [0.0, 6.0]
        for each in range(PLAN.pods)
        if shares.keeps(keys[each % PLAN.services])
    }


def test_the_figures_are_those_of_the_measured_time() -> None:
    found = Figures.of(PLAN, BEFORE, [BEFORE, AFTER], 30.0, asked_of_my_share())
    assert found == Figures(30.0, 6, 15.0, 300.0, 6.0, 9.0, 2)
    assert list(lines_of_cell("x", found)) == [
        "GATE x_cores 0.5 1 PASS",
        "GATE x_mib 300 400 PASS",
        "GATE x_asked_seconds 6 10 PASS",
        "GATE x_oldest_answer_seconds 9 20 PASS",
        "GATE x_unknown 2 0 FAIL",
    ]
    assert next(lines_of_one(found)) == "GATE scrape_2000_round_cpu_seconds 2.5 2 FAIL"


def test_a_replica_that_was_never_asked_fails_the_gate() -> None:
    asked = asked_of_my_share()
    asked.popitem()
    found = Figures.of(PLAN, BEFORE, [BEFORE, AFTER], 30.0, asked)
    assert "GATE x_asked_seconds inf 10 FAIL" in lines_of_cell("x", found)


def test_a_metrics_server_without_a_round_in_the_measured_time_fails_the_gates() -> None:
    found = Figures.of(PLAN, BEFORE, [BEFORE], 30.0, asked_of_my_share())
    assert next(lines_of_one(found)) == "GATE scrape_2000_round_cpu_seconds inf 2 FAIL"
    assert "GATE x_oldest_answer_seconds inf 20 FAIL" in lines_of_cell("x", found)


@pytest.mark.parametrize("learned", [2, 3])
def test_a_service_with_two_learners_fails_the_gate_of_the_group(learned: int) -> None:
    state = State(learned=2, followed=2, known=8, newest_at=105.0, oldest_at=95.0)
    states = [[state]] * 3 + [[replace(state, learned=learned), state]]
    verdict = "0 0 PASS" if learned == 2 else "1 0 FAIL"
    assert list(lines_of_group(states, 8)) == [
        f"GATE scrape_together_shared_wrongly {verdict}",
        "GATE scrape_together_unknown 0 0 PASS",
        "GATE scrape_after_a_loss_unknown 0 0 PASS",
        "GATE scrape_after_a_loss_oldest_report_seconds 10 20 PASS",
    ]


def test_the_cache_has_the_objects_of_the_cluster_and_its_pods_belong_to_the_services() -> None:
    cache = cache_of(10, 20, 4)
    assert (cache.count(LLMSERVICES), cache.count(PODS)) == (10, 20)
    assert all(len(cache.owned(key, PODS)) == 2 for key in keys_of(10))
