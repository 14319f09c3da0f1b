"""What the server counts of the requests that it hands to the engine, and of those refused."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmservice_server.engine import observed_llm
from llmservice_server.engine_usage import EngineUsage, Objectives

TOKENS = [1, 2, 3]


class QueueFull(Exception):
    pass


class Invalid(Exception):
    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)


class ScriptedLLM:
    """An AsyncLLM that refuses where vLLM's does."""

    unfinished = 0
    is_full = False

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        if self.is_full:
            raise QueueFull

    async def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        if not params.is_valid:
            raise Invalid("logprobs is over the maximum")
        self.check_admission(params.n, request_id)
        self.unfinished += params.n
        return request_id


class Engine:
    """An observed engine, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.usage = EngineUsage(Objectives(), lambda: self.seconds, lambda: 1e9)
        vllm: Any = SimpleNamespace(AsyncLLM=ScriptedLLM, VLLMValidationError=Invalid)
        self.llm = observed_llm(vllm, self.usage, max_choices=8)()
        self.usage.unfinished = lambda: self.llm.unfinished

    async def add(self, n: int = 1, is_valid: bool = True) -> None:
        wanted = SimpleNamespace(n=n, is_valid=is_valid)
        await self.llm.add_request("id", {"prompt_token_ids": TOKENS}, wanted)

    def counted(self) -> tuple[int, int]:
        return self.usage.counters.arrivals, self.usage.counters.prompt_tokens_arrived


async def test_an_accepted_request_arrives_with_its_prompt() -> None:
    engine = Engine()
    await engine.add(n=2)
    engine.seconds += 5
    assert engine.counted() == (2, 6)
    assert engine.usage.stalled_seconds() == 5


async def test_what_a_full_queue_refuses_before_the_prompt_is_read_arrives_once() -> None:
    engine = Engine()
    await engine.add()
    engine.llm.is_full = True
    with pytest.raises(QueueFull):
        engine.llm.check_admission(2)
    assert engine.counted() == (3, 9)


async def test_what_a_full_queue_refuses_after_the_prompt_is_read_arrives_once() -> None:
    engine = Engine()
    await engine.add()
    engine.llm.is_full = True
    with pytest.raises(QueueFull):
        await engine.add(n=2)
    assert engine.counted() == (3, 9)


async def test_a_request_that_no_engine_would_take_is_no_demand_and_waits_for_no_step() -> None:
    engine = Engine()
    for _ in range(10):
        with pytest.raises(Invalid):
            await engine.add(is_valid=False)
        with pytest.raises(Invalid):
            engine.llm.check_admission(9)
        engine.seconds += 30
    assert engine.counted() == (0, 0)

    await engine.add()

    assert engine.usage.stalled_seconds() == 0
