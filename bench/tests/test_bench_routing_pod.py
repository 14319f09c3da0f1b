import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmservice_operator.router.envoy_config import build_bootstrap
from router_support.pod import settings_of
from routing.failover import Failover
from routing.gates import gate_line
from routing.memory import memory_mib
from routing.pod import Cost, PlainEnvoy, at_rate, cost_lines, cpu_seconds, percentile, pick_lines


async def test_a_load_is_sent_at_its_rate() -> None:
    sent = []

    async def send() -> None:
        sent.append(time.monotonic())

    await at_rate(100, 0.2, send)
    assert len(sent) == 20
    assert sent[-1] - sent[0] >= 0.18


def test_a_percentile_is_one_of_the_sorted_values() -> None:
    values = [float(each) for each in range(101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50, 99)


def test_the_cpu_time_is_that_of_the_process() -> None:
    pid, started = os.getpid(), time.process_time()
    before = cpu_seconds([pid])
    while time.process_time() - started < 0.1:
        pass
    assert 0.05 < cpu_seconds([pid]) - before < 1


def test_memory_that_two_processes_share_counts_once() -> None:
    shared = b"x" * 64 * 1024**2
    alone, child = memory_mib([os.getpid()]), os.fork()
    if child == 0:
        signal.pause()
    try:
        both = memory_mib([os.getpid(), child])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(shared) / 1024**2 < alone < both < alone + 32


@pytest.mark.parametrize(
    ("value", "is_at_least", "line"),
    [
        (149.96, False, "GATE idle 150 <=150 PASS (MiB)"),
        (151, False, "GATE idle 151 <=150 FAIL (MiB)"),
        (151, True, "GATE idle 151 >=150 PASS (MiB)"),
        (149, True, "GATE idle 149 >=150 FAIL (MiB)"),
    ],
)
def test_a_gate_passes_if_its_figure_meets_the_limit(
    value: float, is_at_least: bool, line: str
) -> None:
    assert gate_line("idle", value, 150, "MiB", is_at_least=is_at_least) == line


def test_the_cost_of_a_load_is_compared_with_that_of_a_plain_envoy() -> None:
    plain, ours = Cost(2.0, [21.0] * 100), Cost(3.5, [22.5] * 100)
    gates = [line for line in cost_lines("cpu_2k", plain, ours) if line.startswith("GATE")]
    assert gates == [
        "GATE cpu_2k 3.5 <=6 PASS (ms; x1.75)",
        "GATE cpu_ratio 1.75 <=1.7 FAIL (of a plain Envoy)",
        "GATE ttft_ratio 2.5 <=2 FAIL (2.5 ms : 1.0 ms)",
    ]
    assert cost_lines("cpu_400k", plain, ours)[-1] == "GATE cpu_400k 3.5 <=12 PASS (ms; x1.75)"


def test_the_picker_alone_has_a_least_rate_and_a_longest_response() -> None:
    assert pick_lines(1200, 0.7, [3.0] * 100) == [
        "GATE picks_per_second 1200 >=1000 PASS (0.70 ms CPU a pick)",
        "GATE pick_p99 3 <=10 PASS (ms at 400 picks/s; p50 3.0 ms)",
    ]


def test_a_plain_envoy_asks_no_picker(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    PlainEnvoy(settings)._write("envoy.json", build_bootstrap(settings))
    listeners = json.loads((tmp_path / "envoy.json").read_text())["static_resources"]["listeners"]
    assert "ext_proc" not in json.dumps(listeners)


GOOD = Failover(fallen_back=0, failed=0, gap_ms=22.4, usual_ms=3.0, saved=(90.0, 87.5, 91.0))


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (GOOD, "GATE failover 0 <=0 PASS (0 fell back and 0 failed of 500; gap 22 ms"),
        (replace(GOOD, fallen_back=1), "GATE failover 1 <=0 FAIL"),
        (replace(GOOD, failed=2), "GATE failover 2 <=0 FAIL"),
        (replace(GOOD, saved=(90.0, 86.5, 91.0)), "GATE failover 0 <=0 FAIL"),
        (replace(GOOD, saved=(90.0, 91.0, 86.5)), "GATE failover 0 <=0 FAIL"),
    ],
)
def test_a_failover_passes_if_no_request_suffers_and_the_caches_stay_warm(
    measured: Failover, verdict: str
) -> None:
    assert measured.line().startswith(verdict)
