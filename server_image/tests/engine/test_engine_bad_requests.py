"""Tests that a ready server refuses all requests that it cannot serve, with errors of one form."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from server_support.engine import SERVED_NAME, ModelServer, Reply

PROMPT = "Hello"

WRONG_EVERYWHERE = [
    {"prompt": "word " * 600},
    {"prompt": "x" * 1_000_000},
    {"prompt": PROMPT, "max_tokens": 0},
    {"prompt": PROMPT, "max_tokens": -1},
    {"prompt": PROMPT, "max_tokens": 1e30},
    {"prompt": PROMPT, "max_tokens": "many"},
    {"prompt": PROMPT, "seed": 2**80},
    {"prompt": PROMPT, "temperature": 1000},
    {"prompt": PROMPT, "temperature": -1},
    {"prompt": PROMPT, "top_p": 0},
    {"prompt": PROMPT, "top_k": -5},
    {"prompt": PROMPT, "min_p": 2},
    {"prompt": PROMPT, "stop": [""]},
    {"prompt": PROMPT, "stop": "\ud800"},
    {"prompt": ""},
    {"prompt": None},
    {},
    [],
    b"",
    b"null",
    b'{"prompt": ',
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "\\ud800"}',
    b"\xff\xfe",
    b'{"prompt": "\xff"}',
    b"[" * 200_000,
    b'{"prompt":' * 100_000,
]

WRONG_FOR_GENERATE = [
    {"prompt": PROMPT, "typo": 1},
    {"prompt": [1, 2, 3]},
]

WRONG_FOR_OPENAI = [
    {"prompt": PROMPT, "n": 0},
    {"prompt": PROMPT, "n": 9},
    {"prompt": PROMPT, "n": 1000, "best_of": 1000},
    {"prompt": [2**40]},
    {"prompt": [10_000_000]},
    {"prompt": [-1]},
    {"prompt": PROMPT, "priority": 2**80},
    {"prompt": PROMPT, "stop": "\ud800", "n": 2},
    {"prompt": PROMPT, "cache_salt": "\ud800"},
    {"prompt": PROMPT, "logprobs": 1000},
    {"prompt": PROMPT, "logit_bias": {"a": 1}},
    {"prompt": PROMPT, "logit_bias": {"99999999": 1}},
    {"prompt": PROMPT, "min_tokens": 9, "max_tokens": 2},
    {"prompt": PROMPT, "truncate_prompt_tokens": 2**70},
    {"prompt": PROMPT, "structured_outputs": {"regex": "(["}},
    {"prompt": PROMPT, "structured_outputs": {"json": "{"}},
    {"prompt": PROMPT, "response_format": {"type": "nothing"}},
    {"prompt": PROMPT, "stream_options": {"include_usage": True}},
]


def named(wrong: object) -> str:
    return str(wrong)[:50]


@pytest.mark.parametrize("wrong", [*WRONG_EVERYWHERE, *WRONG_FOR_GENERATE], ids=named)
def test_generate_answers_a_bad_request_with_400(server: ModelServer, wrong: object) -> None:
    assert_refused(server.post("/generate", wrong))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wrong", [*WRONG_EVERYWHERE, *WRONG_FOR_OPENAI], ids=named)
def test_the_openai_routes_answer_a_bad_request_with_400(
    server: ModelServer, wrong: object, stream: bool
) -> None:
    if isinstance(wrong, dict):
        wrong = {"model": SERVED_NAME, "stream": stream, **wrong}
        if "stream_options" in wrong and stream:
            wrong["stream_options"] = {"include_usage": "perhaps"}
    assert_refused(server.post("/v1/completions", wrong))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": "Hello"},
        {"n": 9},
        {"stop": "\ud800"},
        {"stop": "\ud800", "n": 2},
        {"tools": [{"type": "nothing"}]},
    ],
    ids=named,
)
def test_chat_answers_a_bad_request_with_400(
    server: ModelServer, wrong: dict[str, object], stream: bool
) -> None:
    asked = {"model": SERVED_NAME, "messages": [{"role": "user", "content": "Hello"}]}
    assert_refused(server.post("/v1/chat/completions", {**asked, "stream": stream, **wrong}))


def test_what_cannot_be_told_to_the_engine_leaves_nothing_behind(server: ModelServer) -> None:
    for choices in (1, 2):
        for stream in (False, True):
            wanted = {"model": SERVED_NAME, "prompt": PROMPT, "n": choices, "stream": stream}
            reply = server.post("/v1/completions", {**wanted, "stop": "\ud800"})
            assert_refused(reply)
            assert reply.json()["error"]["message"] == (
                "a value of the request cannot be encoded: 'utf-8' codec can't encode character "
                "'\\ud800' in position 0: surrogates not allowed"
            )
    # If requests waited while the engine makes no steps, the kubelet would restart the server.
    assert server.probe("/autoscale").json()["waiting"] == 0


MESSAGE = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}


@pytest.mark.parametrize(
    ("path", "wanted", "wrong", "last"),
    [
        ("/v1/messages", MESSAGE, {"stop_sequences": ["\ud800"]}, "message_stop"),
        ("/v1/responses", {"input": PROMPT}, {"stop": "\ud800"}, "response.completed"),
    ],
)
def test_a_stream_that_the_engine_refuses_answers_with_400_and_is_no_defect_in_the_log(
    server: ModelServer, path: str, wanted: dict[str, object], wrong: dict[str, object], last: str
) -> None:
    wanted = {"model": SERVED_NAME, "stream": True, **wanted}
    reply = server.post(path, {**wanted, **wrong})
    assert_refused(reply)
    assert "a value of the request cannot be encoded" in reply.json()["error"]["message"]
    assert "an answer broke" not in server.log.read_text()

    reply = server.post(path, wanted)
    assert reply.status == 200
    assert json.loads(reply.events[-1])["type"] == last


def assert_refused(reply: Reply, status: int = 400) -> None:
    """Check the status and the form of the error."""
    assert reply.status == status, reply.body
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] == status


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_body_that_is_no_json_by_its_type_is_refused(server: ModelServer, path: str) -> None:
    headers = {**server.headers, "Content-Type": "text/plain"}
    reply = server.request("POST", path, b"Hello", headers=headers)
    assert_refused(reply)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_body_over_the_limit_is_refused(server: ModelServer, path: str) -> None:
    assert_refused(server.post(path, {"prompt": "x" * 2_000_001}), 413)


def test_an_unknown_model_and_a_wrong_method_have_the_same_envelope(server: ModelServer) -> None:
    assert_refused(server.post("/v1/completions", {"model": "other", "prompt": PROMPT}), 404)
    assert_refused(server.get("/generate"), 405)


def test_routes_for_what_the_model_cannot_do_say_so(server: ModelServer) -> None:
    reply = server.post("/v1/embeddings", {"model": SERVED_NAME, "input": "Hello"})
    assert_refused(reply, 404)
    assert reply.json()["error"]["message"] == (
        "this model does not serve /v1/embeddings; GET /docs lists its routes"
    )


def test_more_answers_than_the_queue_holds_are_admitted_only_when_nothing_waits(
    server: ModelServer,
) -> None:
    refused = 'llm_requests_rejected_total{reason="queue_full"}'
    before = server.metric(refused)
    many = {"model": SERVED_NAME, "prompt": [PROMPT] * 300, "max_tokens": 60, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/v1/completions", many)
        server.eventually(lambda: server.metric("vllm:num_requests_waiting") > 0, seconds=20)
        for stream in (False, True):
            reply = server.post("/v1/completions", {**many, "stream": stream})
            assert_refused(reply, 503)
            assert int(reply.headers["retry-after"]) > 0
        server.eventually(lambda: server.metric(refused) == before + 2, seconds=5)
        answer = first.result()
    assert answer.status == 200
    assert len(answer.json()["choices"]) == 300
    server.eventually(lambda: server.metric("vllm:num_requests_running") == 0, seconds=20)


def test_what_can_never_be_admitted_gets_the_limit(server: ModelServer) -> None:
    texts = {"model": SERVED_NAME, "max_tokens": 1}
    assert_refused(server.post("/v1/completions", {**texts, "prompt": ["a"] * 2049}), 400)
    reply = server.post("/v1/completions", {**texts, "prompt": ["a"] * 1024, "n": 8})
    assert_refused(reply, 400)
    assert "asks for 8192 answers in all" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "structure",
    [
        {"choice": [f"choice {number}" for number in range(90_000)]},
        {"choice": ["a" * 50_000] * 3},
        {"regex": "a" * 131_073},
        {"grammar": 'root ::= "' + "a" * 131_073 + '"'},
        {"json": {"properties": {f"p{number}": {} for number in range(513)}}},
        {"json": {"type": "string", "minLength": 1_000_000}},
    ],
    ids=lambda structure: next(iter(structure)),
)
def test_a_structure_that_is_too_large_is_refused_at_once(
    server: ModelServer, structure: dict[str, object]
) -> None:
    wanted = {"model": SERVED_NAME, "prompt": PROMPT, "structured_outputs": structure}
    began = time.monotonic()
    reply = server.post("/v1/completions", wanted)
    assert time.monotonic() - began < 2
    assert_refused(reply, 400)
    assert "it may" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/generate", "/docs", "/openapi.json", "/load", "/", "/pause", "/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT", "DELETE", "HEAD"])
def test_without_a_key_no_route_answers(server: ModelServer, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Upgrade": "websocket"}):
        reply = server.request(method, path, b"{}", headers=headers)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_an_upgrade_to_a_websocket_without_a_key_is_refused_like_everything(
    server: ModelServer,
) -> None:
    with socket.create_connection(("127.0.0.1", server.api_port)) as client:
        client.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 401 ")


def test_every_key_opens_the_api_and_none_is_logged(
    server: ModelServer, api_keys: tuple[str, ...]
) -> None:
    for key in api_keys:
        headers = {"Authorization": f"Bearer {key}"}
        assert server.request("GET", "/v1/models", headers=headers).status == 200
    log = server.log.read_text()
    assert "API keys" in log
    assert not any(key in log for key in api_keys)
