"""Tests which web pages of other sites may read responses, including those of the gate."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmservice_server.app import allow_origins
from llmservice_server.cors import Origins
from llmservice_server.keys import ApiKeys
from llmservice_server.lifecycle import Phase
from llmservice_server.settings import ServerSettings
from server_support.in_process import Answer, Client, Stack, make_stack

PAGE = "https://a.page"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}


def flags(*origins: str, **other: Any) -> Namespace:
    defaults = {"allowed_methods": ["*"], "allowed_headers": ["*"], "allow_credentials": False}
    return Namespace(allowed_origins=list(origins), **{**defaults, **other})


def stack_for(
    phase: Phase = Phase.READY,
    origins: Sequence[str] = (PAGE,),
    settings: ServerSettings | None = None,
    keys: ApiKeys | None = None,
) -> Stack:
    stack = make_stack(phase, settings, keys)
    allow_origins(stack.app, Origins.from_arguments(flags(*origins)))
    return stack


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    (tmp_path / "key").write_text("secret")
    return ApiKeys(tmp_path)


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/unknown"])
async def test_a_browser_asks_for_permission_without_a_key(
    keys: ApiKeys, phase: Phase, path: str
) -> None:
    stack = stack_for(phase, keys=keys)
    answer = await Client(stack.app).request("OPTIONS", path, headers=ASKS)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert answer.headers["x-request-id"]


async def test_a_page_of_an_origin_that_is_not_allowed_gets_no_permission(keys: ApiKeys) -> None:
    headers = {**ASKS, "origin": "https://another.page"}
    answer = await Client(stack_for(keys=keys).app).request("OPTIONS", "/generate", headers=headers)
    assert answer.status == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers", [{}, {"origin": PAGE}, {k: v for k, v in ASKS.items() if k != "origin"}]
)
async def test_options_that_ask_for_no_permission_need_a_key(
    keys: ApiKeys, headers: dict[str, str]
) -> None:
    answer = await Client(stack_for(keys=keys).app).request("OPTIONS", "/generate", headers=headers)
    assert answer.status == 401


async def test_without_allowed_origins_nothing_is_said_about_them(keys: ApiKeys) -> None:
    client = Client(stack_for(origins=(), keys=keys).app)
    asked = await client.request("OPTIONS", "/generate", headers=ASKS)
    refused = await client.request("GET", "/generate", headers={"origin": PAGE})
    for answer in (asked, refused):
        assert answer.status == 401
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def refused_without_key(keys: ApiKeys) -> Answer:
    return await Client(stack_for(keys=keys).app).request("GET", "/x", headers={"origin": PAGE})


async def refused_in(phase: Phase) -> Answer:
    stack = stack_for(phase)
    return await Client(stack.app).request("POST", "/generate", b"{}", {"origin": PAGE})


async def refused_route() -> Answer:
    return await Client(stack_for().app).request("GET", "/x", headers={"origin": PAGE})


async def refused_body(body: bytes) -> Answer:
    stack = stack_for(settings=ServerSettings(max_body_bytes=10))

    async def read(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    stack.app.state.engine_app = read
    return await Client(stack.app).request("POST", "/generate", [body, b"x"], {"origin": PAGE})


async def redirected() -> Answer:
    return await Client(stack_for().app).request("GET", "/v1/models/", headers={"origin": PAGE})


async def test_a_page_may_read_every_answer_of_the_gate(keys: ApiKeys) -> None:
    answers = [
        await refused_without_key(keys),
        await refused_route(),
        await refused_body(b"0123456789"),
        await refused_body(b"\0\0"),
        await redirected(),
        *[await refused_in(phase) for phase in (Phase.LOADING, Phase.FAILED, Phase.DRAINING)],
    ]
    assert [answer.status for answer in answers] == [401, 404, 413, 400, 307, 503, 503, 503]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE, answer
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "retry-after" in answer.headers["access-control-expose-headers"]


async def test_a_page_may_read_the_error_of_a_request_that_took_too_long() -> None:
    stack = stack_for(settings=ServerSettings(request_timeout_seconds=0.05))

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    stack.app.state.engine_app = wait
    answer = await Client(stack.app).request("POST", "/generate", b"{}", {"origin": PAGE})
    assert answer.status == 504
    assert answer.headers["access-control-allow-origin"] == PAGE


async def test_every_origin_may_be_allowed() -> None:
    stack = stack_for(origins=("*",))
    answer = await Client(stack.app).request("GET", "/x", headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
