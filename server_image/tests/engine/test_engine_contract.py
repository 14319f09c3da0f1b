"""The installed vLLM has the pinned version, and the records about it are correct."""

import json
from typing import Any

from flag_tables import signatures_path
from server_support.engine import SERVER_IMAGE

PINNED = (SERVER_IMAGE / "requirements" / "vllm-version").read_text().strip()


def test_its_signatures_are_the_recorded_ones(installed_vllm: dict[str, Any]) -> None:
    assert installed_vllm["signatures"] == json.loads(signatures_path(PINNED).read_text())


def test_it_is_the_version_that_is_named_once_and_its_cpu_build(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["version"].partition("+")[0] == PINNED
    assert installed_vllm["on_cpu"]


def test_its_processes_say_the_last_words_by_which_an_end_is_known(
    installed_vllm: dict[str, Any],
) -> None:
    assert installed_vllm["unsaid"] == []
