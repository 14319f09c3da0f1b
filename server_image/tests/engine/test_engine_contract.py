"""The installed vLLM has the pinned version, and the records about it are correct."""

import json
from typing import Any

from flag_tables import signatures_path
from llmservice_server.routes import CLOSED, ROUTE_OF_PATH, ROUTES
from server_support.engine import SERVER_IMAGE

PINNED = (SERVER_IMAGE / "requirements" / "vllm-version").read_text().strip()


def test_its_signatures_are_the_recorded_ones(installed_vllm: dict[str, Any]) -> None:
    assert installed_vllm["signatures"] == json.loads(signatures_path(PINNED).read_text())


def test_it_is_the_version_that_is_named_once_and_its_cpu_build(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["version"].partition("+")[0] == PINNED
    assert installed_vllm["on_cpu"]


def test_every_route_of_it_is_open_or_closed_for_a_reason(installed_vllm: dict[str, Any]) -> None:
    known = {path for _, path in installed_vllm["routes"]}
    closed = {path for paths in CLOSED.values() for path in paths}
    assert known - ROUTE_OF_PATH.keys() - closed == set()
    # The others are the server's own.
    assert ROUTE_OF_PATH.keys() - known == {"/generate", "/v1/models/{model}"}


def test_every_route_of_it_has_the_methods_that_are_documented(
    installed_vllm: dict[str, Any],
) -> None:
    documented = {(method, route.path) for route in ROUTES for method in route.methods}
    own = {("POST", "/generate"), ("GET", "/v1/models/{model}")}
    assert documented - own <= {tuple(each) for each in installed_vllm["routes"]}


def test_its_processes_say_the_last_words_by_which_an_end_is_known(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["unsaid"] == []


def test_its_chunks_are_written_without_its_models_in_the_same_bytes(
    installed_vllm: dict[str, Any],
) -> None:
    chunks = installed_vllm["chunks"]
    assert all(chunks["replaced"].values())
    assert chunks["number"] > 500
    assert chunks["different"] == []


def test_it_reads_its_environment_once_when_the_server_says_so(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["reads_environment_once"]
