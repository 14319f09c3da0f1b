"""Tests that the installed vLLM has the pinned version and matches the records about it."""

import json
from typing import Any

from engine_env import PINNED
from flag_tables import interface_path


def test_its_interface_is_the_recorded_one(installed_vllm: dict[str, Any]) -> None:
    assert installed_vllm["interface"] == json.loads(interface_path(PINNED).read_text())


def test_it_is_the_version_that_is_named_once_and_its_cpu_build(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["version"].partition("+")[0] == PINNED
    assert installed_vllm["on_cpu"]


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
