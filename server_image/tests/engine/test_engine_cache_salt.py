"""Tests the isolation of clients with different API keys in the prefix cache of the real engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server_support.engine import SERVED_NAME, ModelServer, flags_for, running_server
from server_support.preloaded import Preloaded

PROMPT = "one " * 170


@pytest.fixture(scope="module", params=["true", "false"])
def isolates(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "true")


@pytest.fixture(scope="module")
def server(
    of_version: Preloaded,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    isolates: bool,
) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("salts")
    keys = tmp_path_factory.mktemp("keys")
    for name in ("anna", "bob"):
        (keys / name).write_text(name)
    settings = {
        "LLMSERVICE_API_KEYS_DIRECTORY": str(keys),
        "LLMSERVICE_ISOLATE_PREFIX_CACHE": str(isolates).lower(),
    }
    flags = (*flags_for(tiny_model), "--enable-prefix-caching")
    with running_server(of_version, folder, *flags, **settings) as started:
        started.headers["Authorization"] = "Bearer anna"
        started.wait_until_ready()
        yield started


def hits(server: ModelServer, key: str, path: str, body: dict[str, object]) -> int:
    """Send a request, and return the number of its tokens that were in the cache."""
    before = server.metric("vllm:prefix_cache_hits_total")
    server.headers["Authorization"] = f"Bearer {key}"
    reply = server.post(path, {"model": SERVED_NAME, "max_tokens": 1, **body})
    assert reply.status == 200, reply.body
    return int(server.metric("vllm:prefix_cache_hits_total") - before)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_prompt_of_another_key_is_in_the_cache_only_if_the_keys_are_not_kept_apart(
    server: ModelServer, isolates: bool, path: str
) -> None:
    prompt = f"{path} {PROMPT}"
    body: dict[str, object] = {"prompt": prompt}
    if path == "/v1/chat/completions":
        body = {"messages": [{"role": "user", "content": prompt}]}
    assert hits(server, "anna", path, body) < 64
    of_the_same_key = hits(server, "anna", path, body)
    assert of_the_same_key >= 128
    assert hits(server, "bob", path, body) == (0 if isolates else of_the_same_key)
    assert hits(server, "bob", path, body) == of_the_same_key
    assert hits(server, "bob", path, {**body, "cache_salt": "mine"}) == 0


def test_several_answers_to_a_prompt_are_kept_apart_like_one(
    server: ModelServer, isolates: bool
) -> None:
    body: dict[str, object] = {"prompt": f"known {PROMPT}"}
    hits(server, "anna", "/v1/completions", body)
    # The second answer always finds the prompt of the first one.
    of_both_answers = 2 * 128
    found = hits(server, "bob", "/v1/completions", {**body, "n": 2})
    assert (found < of_both_answers) is isolates
