"""Tests the changes that the model server makes to vLLM, in the code of several versions.

Each function that the server replaces or overrides has a test. The mark `patches` of the test names
the function.
"""

import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmservice_server.routes import ROUTE_OF_PATH
from server_support.engine import SERVED_NAME, ModelServer, Reply, flags_for, running_server
from server_support.preloaded import Preloaded

STEP_TOKENS = 64
CONTEXT = 512
MESSAGES = [{"role": "user", "content": "Hello"}]
TTFT_SUM = "vllm:time_to_first_token_seconds_sum"
STREAMS: dict[str, dict[str, object]] = {
    "/generate": {"prompt": "Hi", "max_tokens": 5},
    "/v1/completions": {"model": SERVED_NAME, "prompt": "Hi", "max_tokens": 5},
    "/v1/chat/completions": {"model": SERVED_NAME, "messages": MESSAGES, "max_tokens": 5},
    "/v1/responses": {"model": SERVED_NAME, "input": "Hi", "max_output_tokens": 5},
    "/v1/messages": {"model": SERVED_NAME, "messages": MESSAGES, "max_tokens": 5},
}
"""Route -> body of a request that the route answers with a stream."""


@pytest.fixture(scope="module")
def server(
    of_any_version: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    flags = (*flags_for(tiny_model), f"--max-num-batched-tokens={STEP_TOKENS}", "--max-num-seqs=4")
    folder = tmp_path_factory.mktemp("server")
    with running_server(of_any_version, folder, *flags, LLMSERVICE_MAX_CHOICES="8") as started:
        started.wait_until_ready()
        yield started


@pytest.mark.patches("loggers.record")
def test_what_no_client_asked_for_is_not_counted(server: ModelServer) -> None:
    """This is the first test of the file, because the other tests send requests."""
    assert server.metric("vllm:request_success_total") == 0
    assert server.metric("vllm:generation_tokens_total") == 0
    assert server.post("/generate", {"prompt": "Hello", "max_tokens": 1}).status == 200
    assert server.metric("vllm:request_success_total") == 1


@pytest.mark.patches("StatLoggerBase.record", "StatLoggerBase.log_engine_initialized")
def test_every_step_is_counted_and_none_is_logged(server: ModelServer) -> None:
    before = server.counters()["steps"]["moments"]
    wanted = {"prompt": "one " * 170, "max_tokens": 3, "ignore_eos": True}
    tokens = server.post("/generate", wanted).json()["usage"]["prompt_tokens"]
    steps, prefill, sequences = (
        after - first
        for after, first in zip(server.counters()["steps"]["moments"][:3], before[:3], strict=True)
    )
    # The first step followed an idle time, so it is left out.
    assert (steps, prefill, sequences) == (4, tokens - STEP_TOKENS, 2)
    assert "context tokens" not in server.log.read_text()


def reports_during(server: ModelServer, prompts: list[str]) -> list[tuple[int, int]]:
    """Return the waiting and the left prompt tokens, in each report while `prompts` are computed.

    The engine runs only between two reports, for 10 ms or as long as a busy machine takes to stop
    it. It may therefore compute all prompts between two reports.
    """
    arrived, engine = server.counters()["arrivals"], server.engine_pid()
    wanted = {"model": SERVED_NAME, "max_tokens": 1, "prompt": prompts}
    asking = threading.Thread(target=server.post, args=("/v1/completions", wanted))
    reports = []
    os.kill(engine, signal.SIGSTOP)
    try:
        asking.start()
        server.wait_for_arrivals(arrived + len(prompts))
        while asking.is_alive():
            reports.append(server.probe("/autoscale").json())
            os.kill(engine, signal.SIGCONT)
            asking.join(0.01)
            os.kill(engine, signal.SIGSTOP)
    finally:
        os.kill(engine, signal.SIGCONT)
    asking.join()
    return [(each["queuedPromptTokens"], each["leftPromptTokens"]) for each in reports]


def test_prompts_wait_and_are_left_until_they_are_computed(server: ModelServer) -> None:
    one = {"model": SERVED_NAME, "max_tokens": 1, "prompt": "10 one" + " one" * 400}
    tokens = server.post("/v1/completions", one).json()["usage"]["prompt_tokens"]
    for first in range(11, 99, 9):
        prompts = [f"{number} one" + " one" * 400 for number in range(first, first + 9)]
        reports = reports_during(server, prompts)
        assert reports[0] == (9 * tokens, 9 * tokens)
        begun = [left - waiting for waiting, left in reports]
        # A step has tokens of at most two of these prompts.
        assert all(0 <= each <= 2 * tokens for each in begun)
        report = server.probe("/autoscale").json()
        assert report["queuedPromptTokens"] == report["leftPromptTokens"] == 0
        if any(each % tokens for each in begun):
            return
    pytest.fail("no report was made while a prompt was computed in part")


@pytest.mark.patches("processor.assign_request_id")
def test_ttft_begins_when_a_router_has_received_the_request(server: ModelServer) -> None:
    slow, before = server.counters()["ttftMilliseconds"][-1], server.metric(TTFT_SUM)
    headers = {**server.headers, "x-llm-router-held-ms": "500000"}
    wanted = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 2}
    for answers in (1, 2):
        body = {**wanted, "n": answers}
        assert server.request("POST", "/v1/completions", body, headers=headers).status == 200
    assert server.counters()["ttftMilliseconds"][-1] == slow + 3
    assert 3 * 500 <= server.metric(TTFT_SUM) - before < 3 * 500 + 60


@pytest.mark.parametrize("path", STREAMS)
def test_nothing_of_a_stream_is_sent_before_its_first_token(server: ModelServer, path: str) -> None:
    arrived, engine = server.counters()["arrivals"], server.engine_pid()
    client = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=60)
    os.kill(engine, signal.SIGSTOP)
    try:
        client.request("POST", path, json.dumps({**STREAMS[path], "stream": True}), server.headers)
        server.wait_for_arrivals(arrived + 1)
        client.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)

        # A client that leaves is noticed although the server has nothing to send.
        client.close()
        server.eventually(lambda: server.metric("llm_requests_in_flight") == 0, seconds=20)
        assert server.probe("/autoscale").json()["waiting"] == 0
    finally:
        os.kill(engine, signal.SIGCONT)


@pytest.mark.patches("AsyncLLM.check_admission", "AsyncLLM.add_request")
def test_what_is_asked_for_is_limited_and_what_is_accepted_or_turned_away_arrives(
    server: ModelServer,
) -> None:
    before = server.counters()["arrivals"]
    choices = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 1}
    reply = server.post("/v1/completions", {**choices, "n": 9})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "n")
    assert server.counters()["arrivals"] == before

    assert server.post("/v1/completions", {**choices, "n": 3}).status == 200
    beams = {**choices, "max_tokens": 5, "use_beam_search": True, "n": 2}
    assert server.post("/v1/completions", beams).status == 200
    assert server.counters()["arrivals"] == before + 5

    # These are twice as many sequences as the queue takes. They are admitted because none waits.
    many = {**choices, "prompt": ["a"] * 64, "max_tokens": 20, "ignore_eos": True}
    filling = threading.Thread(target=server.post, args=("/v1/completions", many))
    filling.start()
    server.wait_for_arrivals(before + 5 + 64)
    refused = server.post("/v1/completions", {**choices, "n": 2})
    filling.join()
    assert refused.status == 503
    assert server.counters()["arrivals"] == before + 5 + 64 + 2


@pytest.mark.patches("TokenizeParams.__post_init__", "TokenizeParams.apply_post_tokenization")
def test_the_requested_length_is_a_limit_for_which_a_prompt_is_cut(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "prompt": [5] * (CONTEXT - 12), "ignore_eos": True}
    reply = server.post("/v1/completions", {**wanted, "max_tokens": 2**40})
    assert reply.json()["usage"]["completion_tokens"] == 12

    cut = {"truncate_prompt_tokens": -1, "max_tokens": 50}
    reply = server.post("/v1/completions", {**wanted, "prompt": "word " * 2000, **cut})
    usage = reply.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (CONTEXT - 50, 50)

    reply = server.post("/v1/completions", {**wanted, "prompt": [5] * CONTEXT})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "input_tokens")
    assert "leaves no room for an answer" in reply.json()["error"]["message"]


@pytest.mark.patches("TokenizeParams.apply_pre_tokenization")
def test_a_long_text_that_is_truncated_is_not_tokenized_whole(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "max_tokens": 1, "truncate_prompt_tokens": CONTEXT - 1}
    words = " ".join(f"word{number}" for number in range(1_000_000))
    began = server.cpu_seconds()
    reply = server.post("/v1/completions", {**wanted, "prompt": words})
    assert reply.json()["usage"]["prompt_tokens"] == CONTEXT - 1
    # To tokenize the whole text takes several seconds.
    assert server.cpu_seconds() - began < 1


@pytest.mark.patches("AsyncLLM.generate")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("structure", "words"),
    [
        ({"grammar": "root ::= root root | root"}, "refer to itself endlessly"),
        ({"regex": "(?=a)b"}, "look-ahead"),
    ],
    ids=["endless", "look-ahead"],
)
def test_a_structure_that_cannot_be_followed_is_refused_with_the_cause(
    server: ModelServer, structure: dict[str, object], words: str, stream: bool
) -> None:
    wanted = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 2, "stream": stream}
    reply = server.post("/v1/completions", {**wanted, "structured_outputs": structure})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "structured_outputs")
    assert words in reply.json()["error"]["message"]


@pytest.mark.patches("AsyncLLM._add_request")
def test_what_cannot_be_told_to_the_engine_leaves_nothing_behind(server: ModelServer) -> None:
    for stream in (False, True):
        wanted = {"model": SERVED_NAME, "prompt": "a", "n": 2, "stop": "\ud800", "stream": stream}
        reply = server.post("/v1/completions", wanted)
        assert reply.status == 400
        assert "cannot be encoded" in reply.json()["error"]["message"]
    assert server.probe("/autoscale").json()["waiting"] == 0


@pytest.mark.patches("messages.message_stream_converter", "responses.create_responses")
@pytest.mark.parametrize(
    ("path", "wanted", "wrong", "last"),
    [
        (
            "/v1/messages",
            {"messages": MESSAGES, "max_tokens": 5},
            {"stop_sequences": ["\ud800"]},
            ("message_stop",),
        ),
        (
            "/v1/responses",
            {"input": "Hello", "max_output_tokens": 5},
            {"stop": "\ud800"},
            ("response.completed", "response.incomplete"),
        ),
    ],
)
def test_a_stream_that_the_engine_refuses_answers_with_400(
    server: ModelServer,
    path: str,
    wanted: dict[str, object],
    wrong: dict[str, object],
    last: tuple[str, ...],
) -> None:
    asked = {"model": SERVED_NAME, "stream": True, **wanted}
    refused = server.post(path, {**asked, **wrong})
    assert refused.status == 400
    assert "cannot be encoded" in refused.json()["error"]["message"]

    answered = server.post(path, asked)
    assert answered.status == 200
    assert json.loads(answered.events[-1])["type"] in last


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/messages", {"messages": MESSAGES}),
    ],
)
def test_a_stream_has_the_text_of_the_plain_answer(
    server: ModelServer, path: str, wanted: dict[str, object]
) -> None:
    asked = {"model": SERVED_NAME, "temperature": 0, "max_tokens": 20, **wanted}
    plain = server.post(path, asked)
    stream = server.post(path, {**asked, "stream": True})
    assert (plain.status, stream.status) == (200, 200)
    assert len(stream.events) > 5
    pieces = [json.loads(each) for each in stream.events if each != "[DONE]"]
    assert "".join(map(text_of, pieces)) == text_of(plain.json())


def text_of(answer: Any) -> str:
    """Return the text of an answer, or of an event of a stream."""
    match answer:
        case {"choices": [{"message": {"content": str(text)}}]}:
            return text
        case {"choices": [{"delta": {"content": str(text)}}]} | {"choices": [{"text": str(text)}]}:
            return text
        case {"content": [{"text": str(text)}]} | {"delta": {"text": str(text)}}:
            return text
    return ""


@pytest.mark.patches("app.openapi")
def test_only_open_routes_that_the_model_has_are_documented(server: ModelServer) -> None:
    paths = server.get("/openapi.json").json()["paths"].keys()
    assert {"/v1/chat/completions", "/generate"} <= paths <= ROUTE_OF_PATH.keys()
    assert not paths & {"/v1/decisions", "/v1/systemone", "/v1/embeddings"}


@pytest.mark.patches("core_schema.list_schema")
def test_a_list_of_wrong_items_is_refused_at_once(server: ModelServer) -> None:
    began = time.monotonic()
    reply = server.post("/v1/chat/completions", {"model": SERVED_NAME, "messages": [1] * 15_000})
    assert reply.status == 400
    assert time.monotonic() - began < 5


@pytest.mark.patches("registry._run_in_subprocess")
def test_a_model_class_is_inspected_without_a_process(
    of_any_version: Preloaded, tmp_path: Path
) -> None:
    script = Path(__file__).parents[1] / "inspecting_worker.py"
    output = tmp_path / "output"
    process = of_any_version.start([str(script)], {}, tmp_path, output)
    assert process.wait(60) == 0, output.read_text()
    assert "architecture='LlamaForCausalLM'" in output.read_text()
    assert output.read_text().endswith(" and None\n")


@pytest.mark.patches("FlexibleArgumentParser.error")
@pytest.mark.parametrize(
    ("flag", "reason", "found"),
    [
        ("--no-such-flag=1", "InvalidEngineArgument", "unrecognized arguments: --no-such-flag"),
        # Only the engine's process detects this problem.
        ("--kv-cache-memory-bytes=262144", "ContextDoesNotFit", "At most 128 tokens fit."),
    ],
)
def test_a_start_that_cannot_work_says_what_was_found(
    of_any_version: Preloaded,
    tiny_model: Path,
    tmp_path: Path,
    flag: str,
    reason: str,
    found: str,
) -> None:
    with running_server(of_any_version, tmp_path, *flags_for(tiny_model), flag) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert (message["reason"], found in message["message"]) == (reason, True), message


@pytest.mark.patches("AsyncLLM._add_request", "processor.process_outputs")
def test_an_engine_whose_first_structure_is_unusual_serves_the_others_and_its_end_is_an_error(
    of_any_version: Preloaded, tiny_model: Path, tmp_path: Path
) -> None:
    with running_server(of_any_version, tmp_path, *flags_for(tiny_model)) as server:
        server.wait_until_ready()
        # vLLM's first compiler rejects the first schema, so vLLM takes its second compiler.
        for schema in ({"type": "integer", "multipleOf": 3}, {"type": "integer"}):
            wanted = {"model": SERVED_NAME, "prompt": "Hello", "max_tokens": 5}
            structure = {"structured_outputs": {"json": schema}}
            reply = server.post("/v1/completions", {**wanted, **structure})
            assert reply.status == 200, reply.body
            assert reply.json()["choices"][0]["text"].lstrip("-").isdigit()

        # An engine aborts its requests when it stops.
        end_of_the_engine(server, signal.SIGTERM)


@pytest.mark.patches("messages.create_messages")
def test_the_death_of_the_engine_is_an_error_that_another_replica_can_mend(
    server: ModelServer,
) -> None:
    """This is the last test of the file, because it ends the server."""
    end_of_the_engine(server, signal.SIGKILL)


def end_of_the_engine(server: ModelServer, number: signal.Signals) -> None:
    """Send a signal to the engine while it generates, and check the end of each response."""
    endless: dict[str, object] = {"model": SERVED_NAME, "max_tokens": 400, "ignore_eos": True}
    wanted: dict[str, dict[str, object]] = {
        "/generate": {"prompt": "Hi", "max_tokens": 400, "ignore_eos": True},
        "/v1/completions": {**endless, "prompt": "Hi"},
        "/v1/chat/completions": {**endless, "messages": MESSAGES},
        "/v1/messages": {"model": SERVED_NAME, "max_tokens": 400, "messages": MESSAGES},
    }
    replies: dict[tuple[str, bool], Reply] = {}

    def ask(path: str, stream: bool) -> None:
        replies[path, stream] = server.post(path, {**wanted[path], "stream": stream})

    tokens = server.metric("vllm:generation_tokens_total")
    arrived = server.counters()["arrivals"]
    asking = [
        threading.Thread(target=ask, args=(path, stream))
        for path in wanted
        for stream in (False, True)
    ]
    for each in asking:
        each.start()
    server.wait_for_arrivals(arrived + len(asking))
    server.eventually(
        lambda: server.metric("vllm:generation_tokens_total") > tokens + 20, seconds=60
    )
    os.kill(server.engine_pid(), number)
    for each in asking:
        each.join()

    assert len(replies) == len(asking)
    # An answer of /v1/messages may end by itself. On a busy machine, any response may end before
    # the signal.
    broken_off = {asked: reply for asked, reply in replies.items() if not is_whole(reply)}
    assert broken_off
    for asked, reply in broken_off.items():
        assert '"abort"' not in reply.body, asked
        if reply.status == 200:
            assert asked[1], (asked, reply.body)
            assert "error" in json.loads(reply.events[-1]), (asked, reply.body[-300:])
        else:
            assert reply.status == 503, (asked, reply.body)


def is_whole(reply: Reply) -> bool:
    """Return whether a response ended normally."""
    reason = re.search(r'"(?:finish|stop)_reason": ?"(\w+)"', reply.body)
    return reason is not None and reason[1] in {"length", "end_turn", "max_tokens"}
