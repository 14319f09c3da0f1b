"""Tests the list of all routes, and that the route of a request is found."""

import json
from urllib.parse import urljoin

import pytest
from starlette.routing import BaseRoute, Route

from llmservice_server.body_shape import MAX_INPUTS, BadShape, check_shape
from llmservice_server.documentation import examples
from llmservice_server.routes import CLOSED, ROUTES, find_route, served_first, without_slashes


def path_of(method: str, path: str) -> str | None:
    route = find_route(method, path)
    return None if route is None else route.path


def test_every_route_is_listed_once_and_none_is_closed_too() -> None:
    paths = [route.path for route in ROUTES]
    assert len(paths) == len(set(paths))
    assert not set(paths) & {path for closed in CLOSED.values() for path in closed}


def test_every_route_is_found_by_its_own_path_and_methods() -> None:
    for route in ROUTES:
        for method in route.methods:
            assert find_route(method, route.path) is route


def test_a_name_in_a_path_may_be_any_text() -> None:
    assert path_of("GET", "/v1/responses/abc") == "/v1/responses/{response_id}"
    assert path_of("POST", "/v1/responses/abc/cancel") == "/v1/responses/{response_id}/cancel"
    assert path_of("GET", "/v1/models/an-owner/a-model") == "/v1/models/{model}"
    assert path_of("GET", "/v1/responses/a/b") is None
    assert path_of("GET", "/v1/models/") is None


def test_a_route_of_vllm_beside_the_names_stays_closed() -> None:
    assert path_of("POST", "/v1/responses/render") is None
    assert path_of("POST", "/v1/models/pause") is None


def test_a_wrong_method_of_a_plain_path_is_left_to_the_framework() -> None:
    assert path_of("DELETE", "/v1/chat/completions") == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/v1/chat/completions/", ""),
        ("/v1/chat/completions/", "/behind/a/proxy"),
        ("/v1/models/a:b%2Fc/", "/x"),
        ("/v1/chat/completions///", ""),
    ],
)
def test_slashes_at_the_end_lead_to_the_route_itself(path: str, below: str) -> None:
    location = without_slashes("GET", path.encode())
    assert location is not None
    assert urljoin(f"http://host{below}{path}", location) == f"http://host{below}" + path.rstrip(
        "/"
    )


@pytest.mark.parametrize("path", ["/", "//", "/pause/", "/v1/chat/completions", "/v1/models%2F"])
def test_no_other_path_leads_anywhere(path: str) -> None:
    assert without_slashes("GET", path.encode()) is None


def test_the_texts_of_every_route_are_counted_before_they_are_parsed() -> None:
    counted = [(route.path, name) for route in ROUTES for name in route.texts]
    assert ("/v2/embed", "texts") in counted
    for path, name in counted:
        body = f'{{"{name}": [{"[[9]]," * MAX_INPUTS}[[9]]]}}'.encode()
        with pytest.raises(BadShape, match=f"{name} has {MAX_INPUTS + 1} entries"):
            check_shape(path, b"application/json", body)


@pytest.mark.parametrize(
    ("path", "text", "texts"),
    [
        ("/generative_scoring", "query", "items"),
        ("/rerank", "query", "documents"),
        ("/v1/rerank", "query", "documents"),
        ("/v2/rerank", "query", "documents"),
        ("/score", "text_1", "text_2"),
        ("/v1/score", "queries", "documents"),
        ("/v1/systemone", "state", "questions"),
        ("/v1/decisions", "input", "questions"),
    ],
)
def test_a_text_that_is_read_with_each_of_many_is_limited(path: str, text: str, texts: str) -> None:
    def body(length: int, number: int) -> bytes:
        return json.dumps({text: "a" * length, texts: ["b"] * number}).encode()

    assert check_shape(path, b"", body(2048, 2048)).inputs == 2048
    assert check_shape(path, b"", body(5_000_000, 1)).inputs == 1
    with pytest.raises(BadShape, match=f"{text} has 2049 .* at most 2047 entries"):
        check_shape(path, b"", body(2049, 2048))


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("field", ["max_tokens_per_query", "max_tokens_per_doc"])
@pytest.mark.parametrize("documents", [["a" * 2**20], ["a" * 2**10] * 2**10, "a" * 2**20])
def test_texts_that_are_cut_on_the_event_loop_are_limited(
    path: str, field: str, documents: object
) -> None:
    def body(limit: int) -> bytes:
        return json.dumps({"query": "q", "documents": documents, field: limit}).encode()

    with pytest.raises(BadShape, match=f"with {field}, a body may have at most 1048576 bytes"):
        check_shape(path, b"", body(5))
    # The value 0 sets no limit, so no text is cut.
    check_shape(path, b"", body(0))


def test_a_long_prompt_is_no_text_that_is_read_with_others() -> None:
    body = json.dumps({"prompt": "a" * 5_000_000, "n": 100}).encode()
    assert check_shape("/v1/completions", b"", body).inputs == 1


def test_questions_with_names_are_counted_like_a_list() -> None:
    names = ", ".join(f'"q{number}": {{}}' for number in range(300))
    assert check_shape("/v1/systemone", b"", f'{{"questions": {{{names}}}}}'.encode()).inputs == 300


def test_every_example_fits_the_limits_and_names_the_model_where_it_may() -> None:
    found = examples("a-model")
    assert "model" not in found.pop("/generate")
    assert {"/classify", "/pooling", "/score", "/v2/rerank", "/v2/embed"} <= set(found)
    assert {example["model"] for example in found.values()} == {"a-model"}


def test_the_usual_routes_are_tried_first_and_those_of_one_path_in_their_own_order() -> None:
    async def answer(_: object) -> None: ...

    paths = ("/pause", "/load", "/load", "/v1/completions", "/v1/models/{model:path}")
    registered: list[BaseRoute] = [Route(path, answer) for path in paths]
    registered += [BaseRoute(), Route("/v1/chat/completions", answer)]
    pause, load, load_again, completions, models, included, chats = registered
    assert served_first(registered) == [
        *(chats, completions, load, load_again),
        *(pause, models, included),
    ]
