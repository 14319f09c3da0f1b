"""Tests the counts of the requests that the server sends to the engine, and of refused requests."""

from types import SimpleNamespace
from typing import Any

import pytest

from llmservice_server.cache_salt import current_key
from llmservice_server.engine import observed_llm, report_aborts
from llmservice_server.engine_usage import EngineUsage, Objectives
from llmservice_server.errors import ENGINE_FAILED_MESSAGE
from llmservice_server.queue_place import Place, current_place
from llmservice_server.routers import RouterHeaders, current_router_headers

TOKENS = [1, 2, 3]


class QueueFull(Exception):
    pass


class Invalid(Exception):
    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)


class ScriptedLLM:
    """An AsyncLLM that refuses requests in the same functions as vLLM's AsyncLLM."""

    unfinished = 0
    is_full = False

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.requests: list[SimpleNamespace] = []
        """Requests as the engine gets them."""
        self.input_processor = SimpleNamespace(assign_request_id=self.requests.append)

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        self.asked.append(n)
        if self.is_full:
            raise QueueFull

    async def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        if not params.is_valid:
            raise Invalid("logprobs is over the maximum")
        made = SimpleNamespace(request_id=request_id, cache_salt=None, arrival_time=100.0)
        made.sampling_params = params
        self.input_processor.assign_request_id(made)
        self.check_admission(params.n, request_id)
        self.unfinished += params.n
        return request_id


class Engine:
    """An observed engine with a clock that the test advances."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.usage = EngineUsage(Objectives(), lambda: self.seconds, lambda: 1e9)
        vllm: Any = SimpleNamespace(AsyncLLM=ScriptedLLM, VLLMValidationError=Invalid)
        self.llm = observed_llm(vllm, self.usage, max_choices=8)()
        self.usage.unfinished = lambda: self.llm.unfinished

    async def add(self, n: int = 1, is_valid: bool = True, request_id: str = "id") -> None:
        wanted = SimpleNamespace(n=n, is_valid=is_valid)
        await self.llm.add_request(request_id, {"prompt_token_ids": TOKENS}, wanted)

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


@pytest.mark.parametrize(("will_retry", "arrivals"), [(False, 3), (True, 1)])
async def test_a_refused_request_that_a_router_sends_elsewhere_arrives_elsewhere(
    will_retry: bool, arrivals: int
) -> None:
    current_router_headers.set(RouterHeaders(will_retry=will_retry))
    engine = Engine()
    await engine.add()
    engine.llm.is_full = True
    with pytest.raises(QueueFull):
        engine.llm.check_admission(2)
    assert engine.counted()[0] == arrivals
    engine.llm.is_full = False
    await engine.add()
    assert engine.counted()[0] == arrivals + 1


@pytest.mark.parametrize(("request_id", "arrival"), [("cmpl-1-0", 97.5), ("cmpl-1-beam-0", 100.0)])
async def test_a_request_arrives_when_the_router_has_received_it(
    request_id: str, arrival: float
) -> None:
    current_router_headers.set(RouterHeaders(held_seconds=2.5))
    engine = Engine()
    await engine.add(n=2, request_id=request_id)
    (request,) = engine.llm.requests
    assert request.arrival_time == arrival


async def test_a_request_has_the_salt_of_its_key_however_many_answers_it_wants() -> None:
    engine = Engine()
    for key in (None, b"anna", b"bob"):
        current_key.set(key)
        await engine.add(n=2)
    shared, anna, bob = (each.cache_salt for each in engine.llm.requests)
    assert shared is None
    assert None not in (anna, bob)
    assert anna != bob


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


def place(inputs: int, *, asks_for_all: bool = False) -> Place:
    """Begin an HTTP request with the given number of texts."""
    begun = Place(lambda: inputs, asks_for_all=asks_for_all)
    current_place.set(begun)
    return begun


async def test_a_request_of_any_size_is_admitted_when_nothing_waits() -> None:
    engine = Engine()
    engine.llm.is_full = True
    place(2000)
    for _ in range(2000):
        await engine.add()
    assert engine.counted() == (2000, 6000)


@pytest.mark.parametrize(("texts", "is_admitted"), [(9, True), (2048, True), (2049, False)])
async def test_a_route_that_asks_for_all_texts_at_once_asks_for_no_more(
    texts: int, is_admitted: bool
) -> None:
    engine = Engine()
    place(texts, asks_for_all=True)
    if not is_admitted:
        with pytest.raises(Invalid, match="2049 answers in all"):
            engine.llm.check_admission(texts)
        return
    engine.llm.check_admission(texts)
    for _ in range(texts):
        await engine.add()
    assert engine.counted() == (texts, 3 * texts)


async def test_a_full_queue_refuses_a_request_before_any_of_its_texts_is_computed() -> None:
    engine = Engine()
    await engine.add()
    engine.llm.is_full = True
    place(2000)
    with pytest.raises(QueueFull):
        await engine.add()
    assert engine.llm.unfinished == 1
    assert engine.usage.counters.arrivals == 2001


async def test_a_request_that_is_being_added_holds_its_places() -> None:
    engine = Engine()
    first = place(3)
    await engine.add()
    place(5)
    await engine.add()
    assert engine.llm.asked == [2 + 5]
    first.leave()
    place(1)
    await engine.add()
    assert engine.llm.asked == [7, 4 + 1]


async def test_a_request_for_more_answers_than_could_ever_be_admitted_gets_the_limit() -> None:
    engine = Engine()
    place(1025)
    with pytest.raises(Invalid, match=r"2050 answers in all.*at most 2048"):
        await engine.add(n=2)
    assert engine.counted() == (0, 0)


async def test_a_beam_search_counts_its_beams_once() -> None:
    engine = Engine()
    place(1)
    engine.llm.check_admission(4)
    for token in range(10):
        for beam in range(4):
            await engine.add(request_id=f"id-{token}-beam-{beam}")
    assert engine.counted() == (4, 12)


class Queue(list[object]):
    def put(self, output: object) -> None:
        self.append(output)


@pytest.mark.parametrize(("reason", "is_error"), [("abort", True), ("stop", False), (None, False)])
def test_an_abort_by_the_engine_is_an_error_of_its_request(
    reason: str | None, is_error: bool
) -> None:
    class Failed(Exception):
        pass

    queue = Queue()
    processed: list[object] = []
    processor = SimpleNamespace(
        request_states={"a": SimpleNamespace(queue=queue)}, process_outputs=processed.append
    )
    vllm: Any = SimpleNamespace(GracefulHTTPError=Failed)
    report_aborts(vllm, SimpleNamespace(output_processor=processor))
    outputs = [SimpleNamespace(request_id=each, finish_reason=reason) for each in ("a", "gone")]
    processor.process_outputs(outputs)
    told = [each.args for each in queue if isinstance(each, Failed)]
    assert told == [(ENGINE_FAILED_MESSAGE, 503)] * is_error
    assert processed == [outputs]
