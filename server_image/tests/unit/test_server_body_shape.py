"""Tests the limits of the values in a body, which apply before the application parses the body."""

import json
import re
import time

import pytest
from fastapi import FastAPI, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from llmservice_server import body_shape
from llmservice_server.app import attach_engine_app
from llmservice_server.body_shape import MAX_INPUTS, BadShape, Shape, check_shape
from server_support.in_process import Client, make_stack

JSON = b"application/json; charset=utf-8"
MEBIBYTE = 2**20
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/rerank",
    "/v1/responses",
    "/v1/score",
    "/detokenize",
    "/generate",
    "/tokenize",
    None,
)
HURTFUL = {
    "small arrays": b'{"input": [' + b"[1]," * (MEBIBYTE // 4) + b"[1]]}",
    "objects": b'{"messages": [' + b"{}," * (MEBIBYTE // 3) + b"{}]}",
    "names": b"{" + b",".join(b'"%d":1' % number for number in range(100_000)) + b"}",
    "texts": b'["' + b'","' * (16 * MEBIBYTE // 3) + b'"]',
    "numbers": b'{"stop": [' + b"1," * (8 * MEBIBYTE) + b"1]}",
    "open arrays": b"[" * MEBIBYTE,
    "hidden in another encoding": ('{"a":[' + "[1]," * 50_000 + "[1]]}").encode("utf-16"),
    "hidden without a mark": ('{"a":[' + "[1]," * 50_000 + "[1]]}").encode("utf-16-le"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", HURTFUL.values(), ids=HURTFUL)
def test_a_body_that_would_hold_up_the_server_is_refused_quickly(
    route: str | None, body: bytes
) -> None:
    began = time.process_time()
    with pytest.raises(BadShape):
        check_shape(route, JSON, body)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "text", ['],[{"a":1},' * 500_000, '\\"[,' * 500_000, "\\\\" * 500_000, '"' * 3_000_000]
)
def test_a_long_text_is_one_value_whatever_it_holds(route: str | None, text: str) -> None:
    check_shape(route, JSON, json.dumps({"prompt": text}).encode())


@pytest.mark.parametrize(
    ("route", "field", "separator"),
    [
        ("/v1/embeddings", "input", ["a"]),
        ("/v1/embeddings", "input", [[1, 2]]),
        ("/v1/completions", "prompt", ["a"]),
        ("/v1/completions", "prompt_embeds", ["a"]),
        ("/v1/rerank", "documents", ["a"]),
        ("/v1/score", "data_1", ["a"]),
        ("/v1/score", "data_2", ["a"]),
        ("/v1/score", "documents", ["a"]),
    ],
)
def test_a_request_has_as_many_texts_as_the_limit(
    route: str, field: str, separator: list[object]
) -> None:
    fits = {field: separator * MAX_INPUTS}
    assert check_shape(route, JSON, json.dumps(fits).encode()) == Shape(MAX_INPUTS)
    with pytest.raises(BadShape, match=f"{field} has 3000 entries.* at most {MAX_INPUTS}"):
        check_shape(route, JSON, json.dumps({field: separator * 3000}).encode())


def test_documents_of_several_parts_are_counted() -> None:
    body = json.dumps({"documents": {"content": [{}] * (MAX_INPUTS + 1)}}).encode()
    with pytest.raises(BadShape, match="documents"):
        check_shape("/v1/rerank", JSON, body)


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/embeddings"])
def test_a_prompt_of_token_ids_is_one_text(route: str) -> None:
    field = "prompt" if route == "/v1/completions" else "input"
    body = json.dumps({field: list(range(200_000))}).encode()
    assert check_shape(route, JSON, body) == Shape(1)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("field", "entries"),
    [
        ("stop", ["a"] * 257),
        ("stop_sequences", ["a"] * 257),
        ("bad_words", ["a"] * 257),
        ("stop_token_ids", [1] * 4097),
        ("tools", [{}] * 1025),
        ("logit_bias", {str(number): 1 for number in range(16_385)}),
    ],
)
def test_a_field_that_costs_time_for_each_entry_has_a_limit(
    route: str | None, field: str, entries: list[object] | dict[str, int]
) -> None:
    with pytest.raises(BadShape, match=f"{field} has {len(entries)} entries; it may have at most"):
        check_shape(route, JSON, json.dumps({field: entries}).encode())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["stop", "stop_sequences", "bad_words"])
def test_stop_texts_have_a_length_in_all(route: str | None, name: str) -> None:
    for texts in (["a" * 8000, "b" * 8384], "a" * 16_384):
        check_shape(route, JSON, json.dumps({name: texts, "prompt": "a" * 99_999}).encode())
    for texts in (["a" * 8000, "b" * 8385], "a" * 16_385):
        body = json.dumps({name: texts}).encode()
        for hidden in (body, body.replace(b"o", rb"\u006f", 1)):
            with pytest.raises(BadShape, match=f"{name} has 16385 characters.* at most 16384"):
                check_shape(route, JSON, hidden)


def test_a_body_that_is_no_json_is_left_to_the_application() -> None:
    for body in (b"", b"{", b"\xff", b"nonsense" * 1000, b"[" * 300, b'"' * 999_999):
        assert check_shape("/v1/embeddings", JSON, body) == Shape()


def test_a_form_has_as_many_fields_as_the_limit() -> None:
    form = b"application/x-www-form-urlencoded"
    with pytest.raises(BadShape, match="1000 fields"):
        check_shape("/v1/audio/transcriptions", form, b"a=1&" * 1001)
    assert check_shape("/v1/audio/transcriptions", form, b"a=1&a=2") == Shape()
    assert check_shape("/v1/audio/transcriptions", b"multipart/form-data", b"[" * 99_999) == Shape()


async def test_the_client_gets_the_limit_and_the_application_gets_nothing() -> None:
    stack, inner, bodies = make_stack(), FastAPI(), []

    @inner.post("/v1/embeddings")
    async def embed(request: Request) -> None:
        bodies.append(await request.body())

    attach_engine_app(stack.app, inner)

    answer = await Client(stack.app).post("/v1/embeddings", HURTFUL["small arrays"])

    assert answer.status == 400
    assert "more than 16384 arrays and objects" in answer.json()["error"]["message"]
    assert bodies == []
    assert stack.registry.get_sample_value(
        "llm_requests_rejected_total", {"reason": "body_shape"}
    ) == (1)


async def test_a_body_in_parts_reaches_the_application_whole() -> None:
    stack, inner = make_stack(), FastAPI()

    @inner.post("/tokenize")
    async def echo(request: Request) -> str:
        return (await request.body()).decode()

    attach_engine_app(stack.app, inner)
    answer = await Client(stack.app).request("POST", "/tokenize", [b'{"a"', b": 1", b"}"])
    assert answer.json() == '{"a": 1}'


@settings(max_examples=300)
@given(
    values=st.recursive(
        st.text('a"\\[{:,', max_size=6) | st.integers(0, 9),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\:', max_size=3), inner)
        ),
        max_leaves=12,
    ),
    part=st.integers(1, 9),
)
def test_a_body_in_parts_has_the_counts_of_the_whole(values: object, part: int) -> None:
    body = json.dumps(values).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_shape, "_PART_BYTES", part)
        parts = list(body_shape._parts(body))
        outside = b"".join(body_shape._without_strings(body, 1000))

    assert b"".join(parts) == body
    assert outside == re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body)


def test_a_body_far_above_a_limit_is_not_read_to_its_end() -> None:
    parts = iter([b"[" * 101, b"not read"])

    _, excess = body_shape._first_excess(parts, [(100, "arrays"), (9, "names"), (999, "values")])

    assert excess == (100, "arrays")
    assert next(parts) == b"not read"
