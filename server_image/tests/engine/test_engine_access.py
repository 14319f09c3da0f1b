"""Tests the access to every route of vLLM, in every spelling and with every method."""

import http.client
import re
from typing import Any
from urllib.parse import unquote

import pytest

from llmservice_server.routes import ROUTE_OF_PATH
from server_support.engine import ModelServer

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
STRANGERS: tuple[dict[str, str], ...] = (
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic Zmlyc3Qta2V5Og=="},
    {"X-Api-Key": "wrong", "X-Forwarded-For": "127.0.0.1", "X-Original-URL": "/health"},
    {"Connection": "Upgrade", "Upgrade": "websocket"},
)


def spellings(path: str) -> list[str]:
    """Return spellings of a path that some HTTP servers treat as the same path."""
    plain = re.sub(r"\{[^}]*\}", "x", path)
    return [
        plain,
        plain + "/",
        "/" + plain,
        plain.replace("/", "//"),
        plain + "?a=b",
        plain + ";a=b",
        plain + "%2f",
        plain[:1] + f"%{ord(plain[1]):02x}" + plain[2:] if len(plain) > 1 else "/%2f",
        "/x/.." + plain,
        "/%2e" + plain,
        plain.upper(),
        "http://other" + plain,
    ]


def path_of(spelling: str) -> str:
    """Return the path that the server reads from a spelling."""
    return unquote(spelling.removeprefix("http://other").partition("?")[0])


class Connection:
    """HTTP connection that stays open for thousands of requests."""

    def __init__(self, server: ModelServer) -> None:
        self._open = http.client.HTTPConnection("127.0.0.1", server.api_port, timeout=60)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def status(self, method: str, path: str, headers: dict[str, str]) -> int:
        self._open.request(method, path, headers=headers)
        response = self._open.getresponse()
        response.read()
        return response.status


@pytest.fixture
def paths(installed_vllm: dict[str, Any], server: ModelServer) -> set[str]:
    """Every path that vLLM has for any model, and the paths that the model server adds."""
    known = {path for _, path in installed_vllm["interface"]["routes"]}
    assert {"/v1/chat/completions", "/v1/embeddings", "/pause", "/docs"} <= known
    assert len(known) > 40
    return known | set(server.get("/openapi.json").json()["paths"]) | {"/", "/docs", "/metrics"}


def test_without_a_key_nothing_answers(server: ModelServer, paths: set[str]) -> None:
    with Connection(server) as asked:
        answered = [
            (method, spelling, status)
            for path in sorted(paths)
            for number, spelling in enumerate(spellings(path))
            for method in (METHODS if number < 2 else METHODS[:3])
            for headers in [STRANGERS[(number + len(path)) % 5]]
            if (status := asked.status(method, spelling, headers)) != 401
            # A method that HTTP does not know is refused before the key is checked.
            and (method, status) != ("BREW", 400)
        ]
    assert {path_of(spelling) for _, spelling, _ in answered} == {"/health", "/ping"}
    assert {status for *_, status in answered} == {200, 405}


def test_with_a_key_only_serving_answers(
    server: ModelServer, installed_vllm: dict[str, Any]
) -> None:
    with Connection(server) as asked:
        served = {
            (method, path)
            for method, path in installed_vllm["interface"]["routes"]
            if asked.status(method, re.sub(r"\{[^}]*\}", "x", path), server.headers) != 404
        }
    paths = {path for _, path in served}
    documented = set(server.get("/openapi.json").json()["paths"])
    # The status is also 404 for a stored response that does not exist.
    assert documented - {"/generate", "/v1/models/{model}"} - paths == {
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
    }
    # A route that this model does not support is not documented.
    assert paths - documented == {"/docs", "/openapi.json", "/v1/systemone"}


def test_no_spelling_of_a_closed_path_opens_it(
    server: ModelServer, installed_vllm: dict[str, Any]
) -> None:
    closed = {path for _, path in installed_vllm["interface"]["routes"]} - ROUTE_OF_PATH.keys()
    assert len(closed) > 30
    with Connection(server) as asked:
        opened = [
            (method, spelling, status)
            for path in sorted(closed)
            for spelling in spellings(path)
            for method in ("GET", "POST")
            if (status := asked.status(method, spelling, server.headers)) != 404
        ]
    # With GET, this path could be that of a stored response.
    assert opened == [("GET", "/v1/responses/render/", 307)]
