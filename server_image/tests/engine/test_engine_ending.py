"""Tests that a stopping server cuts off no response, and that a failed one reports the reason."""

import json
import os
import random
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server_support.engine import SERVED_NAME, ModelServer, Reply, flags_for, running_server
from server_support.preloaded import Preloaded

TOKENS = 400
CONTEXT = 2048
"""Length of the context in tokens. It is so large that the longest responses take seconds, even if
no other process uses the machine."""
ROUNDS = int(os.environ.get("LLMSERVICE_TEST_ROUNDS", "3"))


@pytest.fixture
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path: Path, server_settings: dict[str, str]
) -> Iterator[ModelServer]:
    flags = flags_for(tiny_model, CONTEXT)
    with running_server(preloaded, tmp_path, *flags, **server_settings) as started:
        yield started


@pytest.fixture
def server_settings() -> dict[str, str]:
    return {"LLMSERVICE_PRE_STOP_SECONDS": "1.5"}


class Asking:
    """A request in progress, sent by a thread."""

    def __init__(self, server: ModelServer, path: str, data: dict[str, object]) -> None:
        self.reply: Reply | None = None
        self._thread = threading.Thread(target=self._ask, args=(server, path, data))
        self._thread.start()

    def _ask(self, server: ModelServer, path: str, data: dict[str, object]) -> None:
        self.reply = server.post(path, data)

    def answer(self) -> Reply:
        self._thread.join(60)
        assert self.reply is not None, "the connection was cut without an answer"
        return self.reply


def test_a_drain_lets_everybody_finish_and_serves_on_before_it_refuses(
    server: ModelServer,
) -> None:
    server.wait_until_ready()
    endless = {"prompt": "Hello", "max_tokens": TOKENS, "ignore_eos": True}
    named = {**endless, "model": SERVED_NAME}
    asked = [
        Asking(server, path, {**data, "stream": stream})
        for path, data in (("/generate", endless), ("/v1/completions", named))
        for stream in (True, False)
        for _ in range(8)
    ]
    server.wait_for_arrivals(len(asked))

    server.terminate()

    server.eventually(lambda: server.probe("/readyz").status == 503, seconds=1)
    assert server.probe("/readyz").json()["phase"] == "draining"
    assert server.probe("/livez").status == 200
    late = server.get("/v1/models")
    assert (late.status, late.headers["connection"]) == (200, "close")
    replies = [each.answer() for each in asked]
    assert {reply.status for reply in replies} == {200}
    for reply in replies:
        if reply.headers["content-type"].startswith("text/event-stream"):
            assert reply.events[-1] == "[DONE]"
            assert '"length"' in reply.events[-2]
        else:
            assert reply.json()["usage"]["completion_tokens"] == TOKENS
    assert server.exit_code() == 0


@pytest.mark.parametrize("server_settings", [{"LLMSERVICE_PRE_STOP_SECONDS": "0"}])
def test_a_drain_refuses_new_requests_while_old_ones_finish(server: ModelServer) -> None:
    server.wait_until_ready()
    asked = [
        Asking(server, "/generate", {"prompt": "Hi", "max_tokens": TOKENS, "ignore_eos": True})
        for _ in range(16)
    ]
    # A request that arrives after the signal would be refused.
    server.wait_for_arrivals(len(asked))

    server.terminate()
    server.eventually(lambda: server.probe("/readyz").status == 503, seconds=1)
    refused = server.get("/v1/models")

    assert (refused.status, refused.headers["connection"]) == (503, "close")
    assert int(refused.headers["retry-after"]) > 0
    assert {each.answer().status for each in asked} == {200}
    assert server.exit_code() == 0


@pytest.mark.parametrize("delay_seconds", [0.3, 1, 3])
def test_process_one_of_a_container_heeds_a_signal_from_its_first_moment(
    engine_python: Path, tiny_model: Path, tmp_path: Path, delay_seconds: float
) -> None:
    unshare = "unshare --pid --fork --kill-child"
    flags = flags_for(tiny_model)
    with running_server(engine_python, tmp_path, *flags, starter=unshare) as server:
        time.sleep(delay_seconds)  # noqa: TID251 - the test depends on the time of the signal
        started = time.monotonic()

        server.terminate_child()

        assert server.exit_code() == 0
        assert time.monotonic() - started < 5


def test_is_gone_at_once_when_told_to_stop_while_importing(
    engine_python: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with running_server(engine_python, tmp_path, *flags_for(tiny_model)) as server:
        server.eventually(server.is_listening, seconds=30)
        started = time.monotonic()

        server.terminate()

        assert server.exit_code() == 0
        # Imports block the interpreter for up to a second at a time.
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("server_settings", [{"LLMSERVICE_PRE_STOP_SECONDS": "60"}])
def test_is_gone_at_once_with_its_engine_when_told_to_stop_while_loading(
    server: ModelServer,
) -> None:
    server.eventually(
        lambda: server.is_listening() and server.probe("/readyz").json()["phase"] == "loading"
    )
    started = time.monotonic()

    server.terminate()

    assert server.exit_code() == 0
    # The server does not wait for the pre-stop time. A busy machine may need some seconds.
    assert time.monotonic() - started < 20
    assert not members(server.process.pid)


def members(group: int) -> list[str]:
    """Return the command lines of the processes of a group that still run."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (process / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[2]) == group and after_name[0] not in "ZX":
                left.append((process / "cmdline").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return left


@dataclass
class Deaths:
    """Results of all tests that kill an engine. Times are in seconds after the signal."""

    seen_seconds: list[float] = field(default_factory=list)
    ended_seconds: list[float] = field(default_factory=list)
    complete: int = 0
    """Number of answers that were complete before the engine died."""
    told: int = 0
    """Number of answers that ended with an error."""


@pytest.fixture(scope="module")
def deaths() -> Iterator[Deaths]:
    """Results of the tests. Each test adds its own, and the fixture prints them at the end."""
    deaths = Deaths()
    yield deaths
    if deaths.ended_seconds:
        print(
            f"\n{len(deaths.ended_seconds)} deaths: seen within {max(deaths.seen_seconds):.2f} s, "
            f"server gone within {max(deaths.ended_seconds):.2f} s; "
            f"{deaths.complete} answers were whole, {deaths.told} ended with an error"
        )


@pytest.mark.causes("EngineDied")
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_death_of_the_engine_ends_the_server_with_a_reason(
    server: ModelServer, deaths: Deaths, seed: int
) -> None:
    server.wait_until_ready()
    endless = {"model": SERVED_NAME, "max_tokens": TOKENS, "ignore_eos": True}
    message = [{"role": "user", "content": "Hello"}]
    asked = [
        Asking(server, path, {**wanted, "stream": stream})
        for path, wanted in (
            ("/generate", {"prompt": "Hi", "max_tokens": TOKENS, "ignore_eos": True}),
            ("/v1/completions", {**endless, "prompt": "Hi"}),
            ("/v1/chat/completions", {**endless, "messages": message}),
            ("/v1/responses", {"input": "Hi", "max_output_tokens": TOKENS}),
        )
        for stream in (True, False)
        for _ in range(3)
    ]
    wanted = {"model": SERVED_NAME, "max_tokens": TOKENS, "messages": message, "stream": True}
    asked += [Asking(server, "/v1/messages", wanted) for _ in range(3)]
    tokens = random.Random(seed).randint(1, 24 * TOKENS // 3)
    # All requests must arrive before the server ends.
    server.wait_for_arrivals(len(asked))
    server.eventually(lambda: server.metric("vllm:generation_tokens_total") >= tokens, seconds=60)
    engine = server.engine_pid()
    started = time.monotonic()

    os.kill(engine, signal.SIGKILL)

    server.eventually(lambda: not server.is_listening() or is_dead(server), seconds=10)
    deaths.seen_seconds.append(time.monotonic() - started)
    assert server.exit_code() == 1
    deaths.ended_seconds.append(time.monotonic() - started)
    assert server.termination_message()["reason"] == "EngineDied"
    assert "ended without a message" in server.termination_message()["message"]
    for reply in (each.answer() for each in asked):
        assert reply.status in (200, 503)
        is_whole = reply.status == 200 and (not is_stream(reply) or is_complete(reply))
        if not is_whole:
            code = error_at_the_end(reply) if is_stream(reply) else reply.json()["error"]["code"]
            assert code == 503, reply.body[-500:]
        deaths.complete += is_whole
        deaths.told += not is_whole


def test_most_servers_end_within_a_second_or_two_of_their_engines_death(deaths: Deaths) -> None:
    assert deaths.seen_seconds, "the test above measures: run both"
    # One measurement may be late, because other processes may take the CPU for a second.
    assert statistics.median(deaths.seen_seconds) < 1
    assert statistics.median(deaths.ended_seconds) < 2


def test_a_stream_whose_engine_dies_before_its_first_token_can_be_sent_to_another_replica(
    server: ModelServer,
) -> None:
    server.wait_until_ready()
    engine = server.engine_pid()
    message = [{"role": "user", "content": "Hello"}]
    named: dict[str, object] = {"model": SERVED_NAME, "max_tokens": 5}
    wanted: dict[str, dict[str, object]] = {
        "/generate": {"prompt": "Hi", "max_tokens": 5},
        "/v1/completions": {**named, "prompt": "Hi"},
        "/v1/chat/completions": {**named, "messages": message},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 5},
        "/v1/messages": {**named, "messages": message},
    }
    os.kill(engine, signal.SIGSTOP)
    asked = [Asking(server, path, {**body, "stream": True}) for path, body in wanted.items()]
    server.wait_for_arrivals(len(asked))

    os.kill(engine, signal.SIGKILL)

    for reply in (each.answer() for each in asked):
        assert (reply.status, reply.headers.get("x-llm-retry")) == (503, "other-replica")


def test_an_answer_that_an_engine_aborts_as_it_stops_is_an_error(server: ModelServer) -> None:
    # With data parallelism, the other engines also abort their requests after one engine has died.
    server.wait_until_ready()
    wanted = {"model": SERVED_NAME, "prompt": "Hi", "max_tokens": CONTEXT - 10, "ignore_eos": True}
    stream, plain = (
        Asking(server, "/v1/completions", {**wanted, "stream": stream}) for stream in (True, False)
    )
    server.wait_for_arrivals(2)
    tokens = server.metric("vllm:generation_tokens_total")
    # The engine has begun to generate both answers.
    server.eventually(lambda: server.metric("vllm:generation_tokens_total") > tokens + 20)

    os.kill(server.engine_pid(), signal.SIGTERM)

    assert plain.answer().status == 503
    assert "[DONE]" not in stream.answer().body
    assert error_at_the_end(stream.answer()) in (500, 503)
    assert '"abort"' not in plain.answer().body + stream.answer().body


def is_stream(reply: Reply) -> bool:
    return reply.headers["content-type"].startswith("text/event-stream")


def is_dead(server: ModelServer) -> bool:
    """Return whether the liveness probe fails or the server has ended."""
    try:
        return server.probe("/livez").status == 503
    except OSError:
        return True


def is_complete(reply: Reply) -> bool:
    """Return whether a client would regard a stream as a complete answer."""
    ends = ("[DONE]", '{"type":"message_stop"}')
    return reply.events[-1] in ends or "response.completed" in reply.body


def error_at_the_end(reply: Reply) -> int | None:
    """Return the status in the last event of a stream; None if this event has no status."""
    assert '"length"' not in reply.body
    error = json.loads(reply.events[-1]).get("error", {})
    if error.get("type") == "overloaded_error":
        # Errors of Anthropic's API have a type and no code.
        assert "\n\nevent: error\n" in reply.body
        return 503
    code: int | None = error.get("code")
    return code


@pytest.mark.causes("EngineHung")
@pytest.mark.parametrize("server_settings", [{"LLMSERVICE_ENGINE_HANG_SECONDS": "2"}])
def test_an_engine_that_hangs_is_not_alive_until_it_goes_on(server: ModelServer) -> None:
    server.wait_until_ready()
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    started = time.monotonic()
    asked = Asking(server, "/generate", {"prompt": "Hi", "max_tokens": 5, "ignore_eos": True})

    server.eventually(lambda: server.probe("/livez").status == 503, seconds=4)
    assert time.monotonic() - started > 2
    assert server.probe("/readyz").status == 503
    assert "no step" in server.probe("/livez").json()["message"]

    os.kill(engine, signal.SIGCONT)
    assert asked.answer().status == 200
    server.eventually(lambda: server.probe("/livez").status == 200, seconds=2)

    # The kubelet stops a container that is not alive. The drain does not wait for a hung engine.
    os.kill(engine, signal.SIGSTOP)
    lost = Asking(server, "/generate", {"prompt": "Hi", "max_tokens": 5, "ignore_eos": True})
    server.eventually(lambda: server.probe("/livez").status == 503, seconds=5)
    server.terminate()
    assert server.exit_code() == 1
    assert server.termination_message()["reason"] == "EngineHung"
    assert lost.answer().status == 503


@pytest.mark.causes("ContextDoesNotFit")
@pytest.mark.parametrize(
    ("flags", "reason", "found"),
    [
        (["--kv-cache-memory-bytes=262144"], "ContextDoesNotFit", "At most 128 tokens fit."),
        (["--max-model-len=9999999"], "ContextDoesNotFit", "At most 2048 tokens fit."),
        (["--no-such-flag=1"], "InvalidEngineArgument", "unrecognized arguments: --no-such-flag"),
        (["--enable-log-requests"], "InvalidEngineArgument", "would log prompts, which is never"),
        (["--port=80"], "InvalidEngineArgument", "--port is set by the model server itself"),
        (
            ['--allowed-origins="https://my.page"'],
            "InvalidEngineArgument",
            '--allowed-origins must be a list, such as ["https://my.page"]',
        ),
        (["--model=/no/such/folder"], "ModelNotFound", "/no/such/folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_start_that_cannot_work_says_what_was_found(
    preloaded: Preloaded,
    tiny_model: Path,
    tmp_path: Path,
    flags: list[str],
    reason: str,
    found: str,
) -> None:
    with running_server(preloaded, tmp_path, *flags_for(tiny_model), *flags) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert (message["reason"], found in message["message"]) == (reason, True), message


@pytest.mark.causes("RemoteCodeRefused", "UnsupportedArchitecture")
@pytest.mark.parametrize(
    ("configuration", "code", "reason", "found"),
    [
        (
            {"architectures": ["TomorrowForCausalLM"], "model_type": "tomorrow"},
            "",
            "UnsupportedArchitecture",
            "This version of vLLM cannot run",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
            "raise AssertionError('code of the model was run')",
            "RemoteCodeRefused",
            "Python code of its own",
        ),
    ],
    ids=["an architecture that vLLM does not know", "code that nobody trusted"],
)
def test_a_model_that_cannot_be_served_says_what_was_found(
    preloaded: Preloaded,
    tiny_model: Path,
    tmp_path: Path,
    configuration: dict[str, object],
    code: str,
    reason: str,
    found: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    changed = {**json.loads((model / "config.json").read_text()), **configuration}
    (model / "config.json").write_text(json.dumps(changed))
    if code:
        (model / "configuration_own.py").write_text(code)
    with running_server(preloaded, tmp_path / "server", *flags_for(model)) as server:
        assert server.process.wait(240) == 1, server.log.read_text()
        message = server.termination_message()
        assert (message["reason"], found in message["message"]) == (reason, True), message
        assert "was run" not in server.log.read_text()
