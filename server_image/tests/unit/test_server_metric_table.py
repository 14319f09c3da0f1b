"""Tests that docs/metrics.md has every metric of the model server, and the counters of SLO and
keys.
"""

from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest

from llmservice_server.app import attach_engine_app
from llmservice_server.engine_usage import Objectives
from llmservice_server.gpu import find_gpus
from llmservice_server.key_usage import MOST_KEYS, KeyUsage, Usage
from llmservice_server.keys import ApiKeys, current_key_name
from llmservice_server.lifecycle import DownloadProgress, Lifecycle, Phase
from llmservice_server.metrics import ServerMetrics
from server_support.in_process import Client, Stack, make_stack
from server_support.nvml import ScriptedNvml
from server_support.steps import Engine, Finished, Iteration
from shared_support.metric_table import differences


def begin(usage: KeyUsage, request_id: str, key: str | None) -> None:
    token = current_key_name.set(key)
    usage.begin(request_id)
    current_key_name.reset(token)


def test_the_model_server_has_the_metrics_of_the_page_and_no_others() -> None:
    engine, registry = Engine(Objectives(ttft=0.4, itl=0.1)), CollectorRegistry()
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.DOWNLOADING)
    lifecycle.download = DownloadProgress(3, 10)
    metrics = ServerMetrics(registry, lifecycle, engine.usage)
    metrics.requests.labels("/generate", 200).inc()
    metrics.duration.labels("/generate").observe(1)
    metrics.aborted.labels("/generate").inc()
    metrics.rejected.labels("timeout").inc()
    metrics.router_headers_ignored.labels("malformed").inc()
    engine.usage.keys.answered("team-a")
    begin(engine.usage.keys, "request", "team-a")
    engine.usage.record(None, Iteration(finished_requests=[Finished()]))
    text = generate_latest(registry).decode()

    of_vllm = ["http_* is not exposed", "vllm:* is not exposed"]
    assert differences(text, "Model server") == of_vllm
    for line in (
        'llm_slo_requests_total{slo="ttft"} 1.0',
        'llm_slo_requests_met_total{slo="ttft"} 0.0',
        'llm_slo_requests_total{slo="itl"} 1.0',
        'llm_slo_requests_met_total{slo="itl"} 1.0',
        'llm_key_requests_total{key="team-a"} 1.0',
        'llm_key_tokens_total{key="team-a",type="prompt"} 4.0',
        'llm_key_tokens_total{key="team-a",type="generated"} 5.0',
    ):
        assert line in text


def test_a_latency_without_a_limit_has_no_counters() -> None:
    engine, registry = Engine(Objectives(itl=0.1)), CollectorRegistry()
    ServerMetrics(registry, Lifecycle(), engine.usage)
    assert 'slo="ttft"' not in generate_latest(registry).decode()


def test_the_page_has_the_metrics_of_the_gpus() -> None:
    collector, registry = find_gpus(ScriptedNvml()), CollectorRegistry()
    assert collector is not None
    registry.register(collector)
    assert differences(generate_latest(registry).decode(), "GPUs of a model server") == []


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    for name, key in (("team-a", "first"), ("team-b", "second")):
        (tmp_path / name).write_text(key)
    stack, inner = make_stack(keys=ApiKeys(tmp_path)), FastAPI()

    @inner.get("/v1/models")
    async def models() -> dict[str, str | None]:
        return {"key": current_key_name.get()}

    attach_engine_app(stack.app, inner)
    return stack


async def test_requests_are_counted_by_the_name_of_their_key(stack: Stack) -> None:
    async def ask(key: str) -> str:
        headers = {"authorization": f"Bearer {key}"}
        answer = await Client(stack.app).request("GET", "/v1/models", headers=headers)
        return answer.body.decode()

    assert await ask("first") == '{"key":"team-a"}'
    for key in ("second", "second", "wrong"):
        await ask(key)

    counted = {name: used.requests for name, used in stack.usage.keys.by_key.items()}
    assert counted == {"team-a": 1, "team-b": 2}


def test_the_tokens_of_requests_without_a_key_are_counted_for_nobody() -> None:
    usage = KeyUsage()
    begin(usage, "request", None)
    usage.finish(Finished())
    assert usage.by_key == {}


def test_further_keys_are_counted_together() -> None:
    usage = KeyUsage()
    for number in range(MOST_KEYS + 5):
        usage.answered(f"key-{number}")
    usage.answered("key-3")
    assert len(usage.by_key) == MOST_KEYS + 1
    assert usage.by_key["other"] == Usage(requests=5)
    assert usage.by_key["key-3"] == Usage(requests=2)


def test_only_the_latest_requests_are_remembered() -> None:
    usage = KeyUsage()
    for number in range(10_001):
        begin(usage, f"request-{number}", "team-a")
    for number in (0, 1):
        usage.finish(Finished(request_id=f"request-{number}"))
    assert usage.by_key["team-a"].generated_tokens == Finished.num_generation_tokens
