"""Tests `kubectl llm chat` and `bench` against an HTTP server that streams as vLLM does."""

import base64
import json
import ssl
import stat
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llmservice_operator.kubectl_plugin.api_client import ApiClient, Part, RequestFailed, Timing
from llmservice_operator.kubectl_plugin.bench import (
    BenchOptions,
    Latency,
    Load,
    measure,
)
from llmservice_operator.kubectl_plugin.chat import ChatOptions, ask
from llmservice_operator.kubectl_plugin.endpoint import (
    Endpoint,
    EndpointOptions,
    Unreachable,
    open_endpoint,
)
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed
from llmservice_operator.kubectl_plugin.screen import as_json
from llmservice_operator.kubectl_plugin.story import Slo
from llmservice_operator.metrics_server.certificates import issue
from operator_support.processes import utc_now
from operator_support.services import a_body

KEY = "key-of-a-client"
WORDS = ("Par", "is", " is\x1b[2J", " big.")


class Server:
    """An OpenAI API with one model. Requests with the word `refuse` fail in different ways."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        return web.json_response({"data": [{"id": "qwen"}, {"id": "adapter"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        text = json.dumps(body)
        if "refuse" in text:
            return web.json_response({"error": {"message": "too long"}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        is_chat = "messages" in body
        for word in ("", *WORDS):
            choice = {"delta": {"content": word}} if is_chat else {"text": word}
            await self._send(response, {"choices": [choice]})
        if "break" in text:
            await self._send(response, {"error": {"message": "the engine died"}})
        elif "cut" not in text:
            usage = {"prompt_tokens": 7, "completion_tokens": len(WORDS)}
            await self._send(response, {"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(f"data: {json.dumps(event)}\n\n".encode())


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Endpoint]]:
    made = Server()
    async with TestServer(made.app()) as running:
        yield made, Endpoint(f"http://127.0.0.1:{running.port}", timeout=30, api_key=KEY)


async def test_a_question_is_answered_as_a_stream_without_control_characters(
    server: tuple[Server, Endpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    made, endpoint = server
    messages = [{"role": "user", "content": "Which city?"}]
    reply = await ask(endpoint, messages, ChatOptions(max_tokens=9))
    assert capsys.readouterr().out == "Paris is[2J big.\n"
    assert (reply.model, reply.prompt_tokens, reply.answer_tokens) == ("qwen", 7, 4)
    assert reply.ttft_seconds is not None
    assert 0 < reply.ttft_seconds <= reply.seconds
    (sent,) = made.requests
    assert (sent["messages"], sent["max_tokens"], sent["stream"]) == (messages, 9, True)


async def test_json_has_the_answer_and_its_times_and_no_stream(
    server: tuple[Server, Endpoint], capsys: pytest.CaptureFixture[str]
) -> None:
    reply = await ask(server[1], [], ChatOptions(as_json=True))
    assert capsys.readouterr().out == ""
    assert as_json(reply).keys() >= {"answer", "ttftSeconds", "itlSeconds", "answerTokens"}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("refuse", "the service answers 400: too long"),
        ("break", "the service ended the answer: the engine died"),
        ("cut", "the answer ended early"),
    ],
)
async def test_a_failed_answer_is_a_message(
    server: tuple[Server, Endpoint], question: str, message: str
) -> None:
    with pytest.raises(RequestFailed, match=message):
        await ask(server[1], [{"role": "user", "content": question}], ChatOptions())


async def test_a_wrong_key_and_a_closed_port_are_named(server: tuple[Server, Endpoint]) -> None:
    url = server[1].url
    with pytest.raises(RequestFailed, match="refuses the API key: pass another one"):
        await ask(Endpoint(url, timeout=5, api_key="wrong"), [], ChatOptions())
    with pytest.raises(RequestFailed, match="the connection to the service failed"):
        await ask(Endpoint("http://127.0.0.1:1", timeout=5), [], ChatOptions())


async def test_a_certificate_is_checked_for_the_name_of_the_service(tmp_path: Path) -> None:
    issued = issue(["qwen.team.svc"], utc_now())
    files = {name: tmp_path / name for name in ("ca", "certificate")}
    files["ca"].write_bytes(issued.authority)
    files["certificate"].write_bytes(issued.certificate + issued.key)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(files["certificate"])
    trusted = ssl.create_default_context(cafile=files["ca"])
    running = TestServer(Server().app(), scheme="https")
    await running.start_server(ssl=server_context)
    async with running:
        endpoint = Endpoint(
            f"https://127.0.0.1:{running.port}", 30, None, KEY, "qwen.team.svc", trusted
        )
        assert (await ask(endpoint, [], ChatOptions(as_json=True))).model == "qwen"
        for wrong in (replace(endpoint, host="other"), replace(endpoint, tls=None)):
            with pytest.raises(RequestFailed, match="pass its authority with --ca-file"):
                await ask(wrong, [], ChatOptions())


async def test_a_load_measures_every_answer_and_counts_failures(
    server: tuple[Server, Endpoint],
) -> None:
    options = BenchOptions(seconds=1, clients=2, prompt_words=3, max_tokens=4)
    load = Load(ApiClient(server[1]), options, lambda _seconds, _answered: None)
    model = await load.run()
    assert len({each["prompt"] for each in server[0].requests}) == len(server[0].requests) >= 2
    slo = Slo(None, 95, 90, 60_000, 120, 60_000, 20)
    result = measure("qwen", model, load, options, slo)
    assert (result.model, result.failures, result.within_slo_percent) == ("qwen", 0, 100.0)
    assert result.answer_tokens_per_second == pytest.approx(4 * result.requests_per_second)
    assert result.ttft.p50 is not None
    assert result.itl.p95 is not None
    assert json.loads(json.dumps(as_json(result)))["statusSlo"]["ttftP95"] == 120


async def test_a_load_that_only_fails_ends_early(server: tuple[Server, Endpoint]) -> None:
    endpoint = Endpoint(server[1].url, timeout=5, model="refuse", api_key=KEY)
    load = Load(ApiClient(endpoint), BenchOptions(seconds=600), lambda _seconds, _answered: None)
    await load.run()
    assert load.answered == []
    assert set(load.failures) == {"the service answers 400: too long"}


def test_percentiles_are_measured_values_in_milliseconds() -> None:
    assert Latency.of([]) == Latency(None, None, None)
    assert Latency.of([0.2]) == Latency(200, 200, 200)
    assert Latency.of([each / 1000 for each in range(100, 0, -1)]) == Latency(50, 95, 99)


def test_the_mean_itl_leaves_out_the_first_token() -> None:
    timing = Timing(first=1.0, last=3.0, tokens=5)
    assert timing.mean_itl == 0.5
    assert Timing(first=1.0, last=1.0, tokens=1).mean_itl is None
    timing.note(Part(prompt_tokens=3, answer_tokens=8))
    assert (timing.tokens, timing.prompt_tokens, timing.last) == (8, 3, 3.0)


def serving(**auth: Any) -> dict[str, Any]:
    spec = {"auth": {"apiKeysSecretRef": auth}} if auth else {}
    status = {"url": "https://qwen.team.svc:8443", "readyReplicas": 1}
    return a_body(spec, status=status)


def fake(tmp_path: Path) -> Kubectl:
    """Return a kubectl that forwards no port and has one Secret."""
    data = {name: base64.b64encode(f"{name}-key\n".encode()).decode() for name in ("bob", "amy")}
    file = tmp_path / "kubectl"
    file.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/said\n'
        "case $1 in\n"
        f"  get) echo '{json.dumps({'data': data})}' ;;\n"
        "  *) echo 'Forwarding from 127.0.0.1:4321 -> 1'; exec sleep 60 ;;\n"
        "esac\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return Kubectl(program=str(file))


def test_the_endpoint_is_a_port_forward_with_the_name_of_the_certificate_and_a_key(
    tmp_path: Path,
) -> None:
    kubectl = fake(tmp_path)
    with open_endpoint(kubectl, serving(name="keys"), EndpointOptions()) as endpoint:
        assert endpoint.url == "https://127.0.0.1:4321"
        assert (endpoint.host, endpoint.api_key) == ("qwen.team.svc", "amy-key")
    assert "service/qwen :8443" in (tmp_path / "said").read_text()
    with open_endpoint(kubectl, serving(name="keys"), EndpointOptions(key_name="bob")) as endpoint:
        assert endpoint.api_key == "bob-key"
    with open_endpoint(kubectl, serving(), EndpointOptions(url="http://x/v1/")) as endpoint:
        assert (endpoint.url, endpoint.api_key) == ("http://x", None)


def test_a_missing_key_and_a_service_that_does_not_serve_are_refused(tmp_path: Path) -> None:
    kubectl = fake(tmp_path)
    wrong = EndpointOptions(key_name="eve")
    with (
        pytest.raises(Unreachable, match="choose one with --key-name, of amy, bob"),
        open_endpoint(kubectl, serving(name="keys"), wrong),
    ):
        pass
    with (
        pytest.raises(Unreachable, match="kubectl llm status qwen"),
        open_endpoint(kubectl, a_body(), EndpointOptions()),
    ):
        pass
    with (
        pytest.raises(KubectlFailed, match="pass one with --api-key-file"),
        open_endpoint(Kubectl(program="no-such-kubectl"), serving(name="keys"), EndpointOptions()),
    ):
        pass
