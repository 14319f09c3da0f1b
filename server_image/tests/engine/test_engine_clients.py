"""Tests requests that work with stock vLLM, on a server that has received no request before."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

KEY = "a-key"
PAGE = "https://a.page"
MODEL = {"model": SERVED_NAME}
CHAT: dict[str, Any] = {
    **MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 2,
}
LONG = "word " * 2000
CONTEXT = 512


@pytest.fixture(scope="module")
def exported() -> Iterator[tuple[str, list[bytes]]]:
    """URL of a collector of traces, and the bodies that it has received."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}/v1/traces", received
        collector.shutdown()


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    exported: tuple[str, list[bytes]],
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "keys").mkdir()
    (folder / "keys" / "key").write_text(KEY)
    flags = (
        *flags_for(tiny_model),
        f'--allowed-origins=["{PAGE}"]',
        f"--otlp-traces-endpoint={exported[0]}",
    )
    settings = {
        "LLMSERVICE_API_KEYS_DIRECTORY": str(folder / "keys"),
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with running_server(preloaded, folder / "server", *flags, **settings) as started:
        started.headers["Authorization"] = f"Bearer {KEY}"
        started.wait_until_ready()
        yield started


@pytest.fixture(scope="module")
def fresh_metrics(server: ModelServer) -> str:
    """The metrics before the first request."""
    return server.probe("/metrics").body


@pytest.fixture(autouse=True)
def _before_every_request(fresh_metrics: str) -> None:
    """Read the metrics before the first request."""


def test_what_no_client_asked_for_is_not_counted(fresh_metrics: str) -> None:
    counted = ("_total", "_count", "_sum", "_bucket")
    samples = dict(
        line.rsplit(" ", 1) for line in fresh_metrics.splitlines() if line.startswith("vllm:")
    )
    of_requests = {
        name: value for name, value in samples.items() if name.partition("{")[0].endswith(counted)
    }
    assert any(name.startswith("vllm:request_success_total") for name in of_requests)
    assert any(name.startswith("vllm:time_to_first_token_seconds_count") for name in of_requests)
    assert {name: value for name, value in of_requests.items() if float(value)} == {}


def test_what_no_client_asked_for_is_not_traced(
    server: ModelServer, exported: tuple[str, list[bytes]]
) -> None:
    assert server.post("/v1/chat/completions", CHAT).status == 200
    assert server.metric("vllm:request_success_total") == 1
    server.eventually(lambda: b"llm_request" in b"".join(exported[1]), seconds=20)
    assert b"".join(exported[1]).count(b"llm_request") == 1


def test_tokens_are_counted_by_the_name_of_the_key(server: ModelServer) -> None:
    def counted(kind: str) -> float:
        return server.metric(f'llm_key_tokens_total{{key="key",type="{kind}"}}')

    before = counted("prompt"), counted("generated")
    used = server.post("/v1/chat/completions", CHAT).json()["usage"]

    assert counted("prompt") == before[0] + used["prompt_tokens"]
    assert counted("generated") == before[1] + used["completion_tokens"]


@pytest.mark.parametrize("most", [CONTEXT, 32_000, 2**40])
@pytest.mark.parametrize("stream", [False, True])
def test_the_requested_length_is_a_limit_on_every_route(
    server: ModelServer, most: int, stream: bool
) -> None:
    rest = {"ignore_eos": True, "stream": stream}
    nearly_full = [{"role": "user", "content": "word " * 450}]
    prompt = {"prompt": "word " * 500, "max_tokens": most, **rest}
    plain = {
        "/generate": prompt,
        "/v1/completions": {**MODEL, **prompt},
        "/v1/chat/completions": {**MODEL, "messages": nearly_full, "max_tokens": most, **rest},
    }
    for path, wanted in plain.items():
        reply = server.post(path, wanted)
        assert reply.status == 200, reply.body
        assert '"finish_reason":"length"' in reply.body, path
    answer = {"stream": stream, **MODEL}
    message = server.post("/v1/messages", {**answer, "messages": nearly_full, "max_tokens": most})
    assert message.status == 200, message.body
    assert '"stop_reason":"max_tokens"' in message.body
    response = {**answer, "input": "word " * 450, "max_output_tokens": most}
    reply = server.post("/v1/responses", response)
    assert reply.status == 200, reply.body
    assert '"incomplete"' in reply.body


def test_the_default_length_of_a_completion_is_a_limit_too(server: ModelServer) -> None:
    reply = server.post("/v1/completions", {**MODEL, "prompt": [5] * (CONTEXT - 3)})
    assert reply.json()["usage"]["completion_tokens"] <= 3
    reply = server.post("/v1/completions", {**MODEL, "prompt": [5] * CONTEXT})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "input_tokens")
    assert "leaves no room for an answer" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("most", "kept"), [(None, 384), (50, 462), (500, 12), (CONTEXT, 384), (32_000, 384)]
)
@pytest.mark.parametrize("cut", [-1, CONTEXT])
def test_a_prompt_is_cut_so_that_the_answer_has_its_room(
    server: ModelServer, most: int | None, kept: int, cut: int
) -> None:
    length = {} if most is None else {"max_tokens": most}
    messages = [{"role": "user", "content": LONG}]
    wanted = {**MODEL, "messages": messages, "truncate_prompt_tokens": cut, "ignore_eos": True}
    reply = server.post("/v1/chat/completions", {**wanted, **length})
    assert reply.status == 200, reply.body
    assert reply.json()["usage"]["prompt_tokens"] == kept
    assert reply.json()["usage"]["completion_tokens"] == CONTEXT - kept


@pytest.mark.parametrize(("most", "kept"), [(None, 384), (50, 462), (32_000, 384)])
def test_a_response_with_automatic_truncation_has_room_for_the_answer(
    server: ModelServer, most: int | None, kept: int
) -> None:
    wanted = {**MODEL, "input": LONG, "truncation": "auto"}
    reply = server.post("/v1/responses", {**wanted, "max_output_tokens": most})
    assert reply.status == 200, reply.body
    assert reply.json()["usage"]["input_tokens"] == kept


def test_a_number_of_prompt_tokens_to_keep_is_kept(server: ModelServer) -> None:
    wanted = {**MODEL, "prompt": LONG, "truncate_prompt_tokens": 500, "max_tokens": 100}
    usage = server.post("/v1/completions", {**wanted, "ignore_eos": True}).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (500, 12)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("structure", "words"),
    [
        # The engine's compiler rejects this grammar, but another compiler of vLLM accepts it.
        ({"grammar": '%llguidance {}\nstart: "a"'}, "directive %llguidance is not supported"),
        ({"grammar": "%llguidance {}"}, "no start rule found"),
        ({"regex": "(?=a)b"}, "look-ahead"),
        ({"regex": "(["}, "unclosed character class"),
    ],
    ids=["another", "grammar", "look-ahead", "unclosed"],
)
def test_a_structure_that_cannot_be_compiled_is_refused_in_the_compilers_words(
    server: ModelServer, structure: dict[str, object], words: str, stream: bool
) -> None:
    wanted = {**MODEL, "prompt": "Hello", "max_tokens": 2, "stream": stream}
    # The compiler of this first structure compiles all later structures of the engine.
    first = {"structured_outputs": {"json": {"type": "integer"}}}
    assert server.post("/v1/completions", {**wanted, **first}).status == 200
    reply = server.post("/v1/completions", {**wanted, "structured_outputs": structure})
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (400, "structured_outputs")
    assert words in error["message"]
    assert "<path>" not in error["message"]


def test_a_list_is_scored_or_answered_whole(server: ModelServer) -> None:
    # The number is above the limit of choices per request, and above the number of sequences that
    # the engine computes at once.
    many = 300
    scored = {**MODEL, "query": "Is it ", "items": ["a"] * many, "label_token_ids": [1, 2]}
    reply = server.post("/generative_scoring", scored)
    assert reply.status == 200, reply.body
    assert len(reply.json()["data"]) == many
    batch = {**CHAT, "messages": [CHAT["messages"]] * many}
    reply = server.post("/v1/chat/completions/batch", batch)
    assert reply.status == 200, reply.body
    assert len(reply.json()["choices"]) == many
    for path, wanted, name in (
        ("/generative_scoring", scored, "items"),
        ("/v1/chat/completions/batch", batch, "messages"),
    ):
        refused = server.post(path, {**wanted, name: [*wanted[name]] * 7})
        assert refused.status == 400
        assert "at most 2048" in refused.json()["error"]["message"]


def test_a_structure_that_only_another_compiler_checks_is_followed_as_stock_vllm_does(
    server: ModelServer,
) -> None:
    wanted = {**MODEL, "prompt": "Hello", "max_tokens": 30, "temperature": 0}
    for schema in (
        {"type": "integer"},
        # vLLM checks this schema with a different compiler than the engine's.
        {"type": "object", "patternProperties": {"^a$": {"type": "integer"}}},
    ):
        structure = {"structured_outputs": {"json": schema}}
        reply = server.post("/v1/completions", {**wanted, **structure})
        assert reply.status == 200, reply.body


def test_a_client_finds_its_model_by_name_and_no_other(server: ModelServer) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{server.api_port}/v1/", api_key=KEY) as client:
        assert client.models.retrieve(SERVED_NAME).id == SERVED_NAME
        for other in ("other", "an-owner/other"):
            with pytest.raises(NotFoundError, match=f"no model {other} is served here, but tiny"):
                client.models.retrieve(other)
        with pytest.raises(NotFoundError, match="Response with id 'abc' not found"):
            client.responses.retrieve("abc")


def test_a_slash_at_the_end_of_an_address_does_no_harm(server: ModelServer) -> None:
    base = f"http://127.0.0.1:{server.api_port}/v1/"
    with OpenAI(base_url=base, api_key=KEY) as client:
        answer = client.post("/chat/completions/", body=CHAT, cast_to=object)
    assert isinstance(answer, dict)
    assert answer["object"] == "chat.completion"
    assert server.request("POST", "/v1/chat/completions/", CHAT, headers={}).status == 401


def test_a_message_has_the_id_in_the_header_of_its_api(server: ModelServer) -> None:
    for wanted in (CHAT, {**CHAT, "stream": True}, {}):
        reply = server.post("/v1/messages", wanted)
        assert reply.headers["request-id"] == reply.headers["x-request-id"]


def test_only_whether_the_server_is_up_is_told_without_a_key(server: ModelServer) -> None:
    statuses = {
        path: server.request("GET", path, headers={}).status
        for path in ("/health", "/ping", "/load", "/version", "/v1/models", "/metrics")
    }
    open_to_all = {path for path, status in statuses.items() if status == 200}
    assert open_to_all == {"/health", "/ping"}
    assert {statuses[path] for path in statuses.keys() - open_to_all} == {401}
    assert server.get("/load").json() == {"server_load": 0}


def test_a_page_asks_without_its_key_and_reads_every_answer(server: ModelServer) -> None:
    asks = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    permission = server.request("OPTIONS", "/v1/chat/completions", headers=asks)
    assert permission.status == 200
    assert permission.headers["access-control-allow-origin"] == PAGE
    page = {**server.headers, "Origin": PAGE}
    for stream in (False, True):
        wanted = {**CHAT, "stream": stream}
        read = server.request("POST", "/v1/chat/completions", wanted, headers=page)
        refused = server.request("POST", "/v1/chat/completions", wanted, headers={"Origin": PAGE})
        unknown = server.request("GET", "/unknown", headers=page)
        assert [each.status for each in (read, refused, unknown)] == [200, 401, 404]
        for answer in (read, refused, unknown):
            # A browser rejects a header that occurs twice, as it rejects a missing header.
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_a_client_of_the_oldest_http_gets_a_stream_without_chunks(server: ModelServer) -> None:
    body = b'{"prompt": "Hello", "max_tokens": 3, "ignore_eos": true, "stream": true}'
    with socket.create_connection(("127.0.0.1", server.api_port), timeout=30) as client:
        client.sendall(
            b"POST /generate HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
            % (KEY.encode(), len(body), body)
        )
        with client.makefile("rb") as answer:
            head, _, stream = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    events = stream.decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
