"""Tests the responses of a ready server, and its probes until it is ready."""

import html
import http.client
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from server_support.engine import SERVED_NAME, ModelServer, documented_examples
from shared_support.metric_table import differences

PROMPT = "Hello"
REPOSITORY = Path(__file__).resolve().parents[3]


def test_answers_probes_from_the_start_and_refuses_requests_until_it_is_ready(
    server: ModelServer, loading_answers: dict[str, int]
) -> None:
    assert loading_answers == {"/livez": 200, "/startupz": 503, "/readyz": 503, "/v1/models": 503}
    for path in ("/livez", "/startupz", "/readyz"):
        assert server.probe(path).status == 200


def test_generates(server: ModelServer) -> None:
    reply = server.post("/generate", {"prompt": PROMPT, "max_tokens": 7, "ignore_eos": True})

    assert reply.status == 200
    answer = reply.json()
    assert set(answer) == {"text", "finish_reason", "usage"}
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7


def test_a_stream_has_the_text_of_the_plain_answer(server: ModelServer) -> None:
    wanted = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    plain = server.post("/generate", wanted).json()

    reply = server.post("/generate", {**wanted, "stream": True})

    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, end = reply.events
    pieces = [json.loads(event) for event in events]
    assert end == "[DONE]"
    assert len(pieces) > 1
    assert "".join(piece["text"] for piece in pieces) == plain["text"]
    assert pieces[-1]["usage"] == plain["usage"]
    assert pieces[-1]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 1, "seed": 7, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
        {"presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.2},
        {"logit_bias": {"100": 100}},
        {"logit_bias": {"100": 100}, "stop_token_ids": [100], "min_tokens": 4},
        {"allowed_token_ids": [100, 200, 300]},
        {"bad_words": ["a", "b"], "skip_special_tokens": False},
    ],
    ids=str,
)
def test_generate_gives_the_answer_of_the_openai_route(
    server: ModelServer, sampling: dict[str, object]
) -> None:
    wanted = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True, **sampling}
    ours = server.post("/generate", wanted).json()
    theirs = server.post("/v1/completions", {**wanted, "model": SERVED_NAME}).json()
    assert theirs["choices"][0]["text"] == ours["text"]
    assert theirs["choices"][0]["finish_reason"] == ours["finish_reason"]
    assert theirs["usage"]["completion_tokens"] == ours["usage"]["completion_tokens"]


def test_a_stop_text_ends_the_answer_and_stands_in_it_only_when_asked_for(
    server: ModelServer,
) -> None:
    wanted = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    text = server.post("/generate", wanted).json()["text"]
    stop = text[8:12]
    for included in (False, True):
        wanted |= {"stop": [stop], "include_stop_str_in_output": included}
        answer = server.post("/generate", wanted).json()
        assert answer["finish_reason"] == "stop"
        assert answer["text"].endswith(stop) is included


def test_the_seed_decides_the_answer(server: ModelServer) -> None:
    wanted = {"prompt": PROMPT, "max_tokens": 16, "temperature": 1, "ignore_eos": True}
    first, again, other = (
        server.post("/generate", {**wanted, "seed": seed}).json()["text"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_first_answer_with_probabilities_waits_for_no_compiler(server: ModelServer) -> None:
    wanted = {"model": SERVED_NAME, "prompt": PROMPT, "max_tokens": 2, "logprobs": 2}
    started = time.monotonic()
    answer = server.post("/v1/completions", wanted).json()
    assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 2
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "structure",
    [
        {"grammar": "root ::= root root | root"},
        {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_structure_that_nothing_satisfies_is_the_fault_of_who_asks_for_it(
    server: ModelServer, structure: dict[str, object], stream: bool
) -> None:
    wanted = {"model": SERVED_NAME, "prompt": PROMPT, "max_tokens": 2, "stream": stream}
    reply = server.post("/v1/completions", {**wanted, "structured_outputs": structure})
    assert (reply.status, reply.json()["error"]["param"]) == (400, "structured_outputs")
    assert "it may refer to itself endlessly" in reply.json()["error"]["message"]


def test_chats_as_a_stream(server: ModelServer) -> None:
    reply = server.post(
        "/v1/chat/completions",
        {
            "model": SERVED_NAME,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 5,
            "stream": True,
            "ignore_eos": True,
        },
    )

    assert reply.status == 200
    *events, end = reply.events
    assert end == "[DONE]"
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"


def test_serves_the_model_under_its_name(server: ModelServer) -> None:
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == (SERVED_NAME, 512)


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/pause",
        "/sleep",
        "/scale_elastic_ep",
        "/invocations",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/start_profile",
        "/server_info",
        "/redoc",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_administration_is_not_reachable(server: ModelServer, method: str, path: str) -> None:
    reply = server.request(method, path, {})
    assert (reply.status, reply.json()["error"]["code"]) == (404, 404)


def test_documents_what_it_serves_and_nothing_else(server: ModelServer) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert {"/generate", "/v1/completions", "/v1/chat/completions", "/v1/models"} <= set(paths)
    for path, operations in paths.items():
        for method in operations:
            reply = server.request(method.upper(), path, b"{")
            assert "no route" not in reply.body, path
            assert "does not serve" not in reply.body, path


def test_every_example_of_the_documentation_works(server: ModelServer) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    examples = documented_examples(paths)
    assert {"/generate", "/v1/chat/completions", "/v1/responses", "/tokenize"} <= set(examples)
    page = html.unescape(server.get("/docs").body)
    for path, example in examples.items():
        assert server.post(path, example).status == 200, path
        assert json.dumps(example) in page
    with_bodies = {
        path for path, operations in paths.items() if "requestBody" in operations.get("post", {})
    }
    assert with_bodies == set(examples)


def test_the_autoscaler_reads_what_the_engine_did(server: ModelServer) -> None:
    def report() -> Any:
        return server.probe("/autoscale").json()

    before = report()
    prompt = "one two three four five six seven eight"
    tokens = server.post("/tokenize", {"model": SERVED_NAME, "prompt": prompt}).json()["count"]
    wanted = {"prompt": prompt, "max_tokens": 20, "ignore_eos": True}
    assert server.post("/generate", wanted).status == 200
    after = report()

    assert (after["phase"], after["started"]) == ("ready", before["started"])
    done = {
        name: after["counters"][name] - before["counters"][name]
        for name, value in before["counters"].items()
        if isinstance(value, int)
    }
    assert done["arrivals"] == done["finished"] == done["judged"] == 1
    assert done["promptTokensArrived"] == tokens
    assert done["promptTokensComputed"] + done["promptTokensCached"] == tokens
    assert done["generatedTokens"] == done["answerTokens"] == 20
    # The TTFT objective is generous, and the ITL objective cannot be met.
    assert (done["ttftMet"], done["itlMet"], done["sloMet"]) == (1, 0, 0)
    steps, _, sequences, kv_tokens, seconds = (
        new - old
        for new, old in zip(
            after["counters"]["steps"]["moments"][:5],
            before["counters"]["steps"]["moments"][:5],
            strict=True,
        )
    )
    # The first step is left out. It followed an idle time, so its duration is unknown.
    assert (steps, sequences) == (19, 19)
    assert 0 < seconds < 20
    assert kv_tokens > 0
    assert (after["running"], after["waiting"]) == (0, 0)
    assert after["kvCapacityTokens"] > 512
    assert after["maxSequences"] > 0
    assert after["maxStepTokens"] > 0


def test_without_a_gpu_there_are_no_gpu_metrics(server: ModelServer) -> None:
    assert "llm_gpu" not in server.probe("/metrics").body


def test_metrics_are_on_the_management_port_ours_beside_those_of_vllm(server: ModelServer) -> None:
    finished = "vllm:request_success_total"
    counted = 'llm_requests_total{route="/generate",status="200"}'
    before = server.metric(finished), server.metric(counted)
    for _ in range(3):
        server.post("/generate", {"prompt": PROMPT, "max_tokens": 2})

    assert server.metric(finished) == before[0] + 3
    assert server.metric(counted) == before[1] + 3
    assert server.metric('llm_phase{phase="ready"}') == 1
    assert server.metric('llm_load_seconds{phase="importing"}') > 0
    assert differences(server.probe("/metrics").body, "Model server") == []


def test_vllm_has_the_metrics_that_alerts_dashboards_and_runbooks_query(
    server: ModelServer,
) -> None:
    chart, runbooks = REPOSITORY / "charts/llmservice-operator/files", REPOSITORY / "docs/runbooks"
    files = [chart / "alerts.yaml", *chart.glob("dashboards/*.json"), *runbooks.glob("*.md")]
    queried = {name for file in files for name in re.findall(r"vllm:\w+", file.read_text())}
    exposed = set(re.findall(r"^vllm:\w+", server.probe("/metrics").body, re.MULTILINE))

    # This server does not speculate.
    of_speculation = {name for name in queried if name.startswith("vllm:spec_decode_")}
    assert len(of_speculation) == 2
    assert queried - exposed == of_speculation


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(server: ModelServer, stream: bool) -> None:
    # Without an abort, these tokens take far longer than the wait below.
    wanted = {"prompt": PROMPT, "max_tokens": 500, "ignore_eos": True, "stream": stream}
    before = server.metric("vllm:generation_tokens_total")
    connections = []
    for _ in range(8):
        connection = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=60)
        connection.request("POST", "/generate", json.dumps(wanted), server.headers)
        connections.append(connection)
    server.eventually(lambda: server.metric("vllm:num_requests_running") > 0, seconds=10)

    for connection in connections:
        connection.close()

    server.eventually(lambda: server.metric("llm_requests_in_flight") == 0, seconds=5)
    server.eventually(lambda: server.metric("vllm:num_requests_running") == 0, seconds=5)
    assert server.metric("vllm:generation_tokens_total") - before < 8 * 500


def test_logs_are_json_and_hold_no_prompt(server: ModelServer) -> None:
    secret = "the-password-is-tulip"
    server.post("/generate", {"prompt": secret, "max_tokens": 2})
    server.post("/generate", {"prompt": secret, "max_tokens": -2})

    def written() -> list[dict[str, Any]]:
        # Text after the last newline belongs to a line that is still being written.
        lines = server.log.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if '"logger": "llmservice_server' in line]

    def is_refusal(line: dict[str, Any]) -> bool:
        return (line.get("route"), line.get("status")) == ("/generate", 400)

    # A request is logged at its end, possibly just after the client has received the response.
    server.eventually(lambda: is_refusal(written()[-1]), seconds=5)
    ours = written()
    assert any(line["message"].startswith("ready") for line in ours)
    assert re.fullmatch("[0-9a-f]{32}", ours[-1]["requestId"])
    assert secret not in server.log.read_text()
