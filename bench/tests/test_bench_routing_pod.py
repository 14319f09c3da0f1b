import json
import os
import time
from pathlib import Path

from llmservice_operator.router.envoy_config import build_bootstrap
from router_support.pod import settings_of
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
