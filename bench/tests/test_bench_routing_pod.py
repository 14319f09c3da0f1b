import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmservice_operator.router.envoy_config import build_bootstrap
from router_support.pod import settings_of
from routing.failover import Failover
from routing.pod import PlainEnvoy, at_rate, cpu_seconds, percentile


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
