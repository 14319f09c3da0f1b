"""Tests the header that names a stored response, on a server whose store is switched on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmservice_server.stored_responses import STORED_HEADER
from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

RESPONSE = {"model": SERVED_NAME, "input": "Hello", "max_output_tokens": 5}


@pytest.fixture(scope="module")
def server(
    preloaded: Preloaded, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("storing")
    settings = {"VLLM_ENABLE_RESPONSES_API_STORE": "1"}
    with running_server(preloaded, folder, *flags_for(tiny_model), **settings) as started:
        started.wait_until_ready()
        yield started


def test_a_stored_response_can_be_read_by_the_id_in_its_header(server: ModelServer) -> None:
    plain = server.post("/v1/responses", RESPONSE)
    streamed = server.post("/v1/responses", {**RESPONSE, "stream": True})
    in_background = server.post("/v1/responses", {**RESPONSE, "background": True})
    ids = [
        plain.json()["id"],
        json.loads(streamed.events[0])["response"]["id"],
        in_background.json()["id"],
    ]
    assert [each.headers[STORED_HEADER] for each in (plain, streamed, in_background)] == ids
    for each in ids:
        assert server.get(f"/v1/responses/{each}").json()["id"] == each


def test_a_response_that_is_not_stored_is_not_named(server: ModelServer) -> None:
    answered = server.post("/v1/responses", {**RESPONSE, "store": False})
    assert (answered.status, STORED_HEADER in answered.headers) == (200, False)
    refused = server.post("/v1/responses", {**RESPONSE, "previous_response_id": "resp_unknown"})
    assert (refused.status, STORED_HEADER in refused.headers) == (404, False)
