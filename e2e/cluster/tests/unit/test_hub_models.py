"""Tests that answers of transformers are computed once and then come from the cache."""

import json
from pathlib import Path

import pytest

from localkube.hub import engine
from localkube.hub.models import read_greedy_reference


def test_only_a_question_that_was_never_asked_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[tuple[str, ...]] = []

    def compute(script: str, model: str, tokens: str, *, stdin: str) -> str:
        computed.append((script, model, tokens, stdin))
        return json.dumps([{"text": f"{model} {tokens} {stdin}"}])

    monkeypatch.setenv("LLMSERVICE_CACHE", str(tmp_path))
    monkeypatch.setattr(engine, "run_script", compute)
    questions = [
        (Path("models/1/llama"), ["Hello"], 8),
        (Path("models/2/llama"), ["Hello"], 8),
        (Path("models/1/llama"), ["Bye"], 8),
        (Path("models/1/llama"), ["Hello"], 9),
    ]

    first = [read_greedy_reference(*question) for question in questions]
    second = [read_greedy_reference(*question) for question in questions]

    assert second == first
    assert len(computed) == len(questions)
    assert len({json.dumps(answer) for answer in first}) == len(questions)
