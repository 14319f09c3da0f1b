"""Tests that replacements write the usual chunks of a stream exactly as vLLM's models do.

The replacements leave the other chunks to the models.
"""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field

from server_support.streaming import replaced, written


class Delta(BaseModel):
    role: str | None = None
    content: str | None = None
    tool_calls: list[int] = Field(default_factory=list)


class ChatChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Choice(BaseModel):
    index: int
    text: str
    logprobs: list[float] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Chunk(BaseModel):
    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None


class ChatChunk(Chunk):
    choices: list[ChatChoice]  # type: ignore[assignment]


@pytest.fixture
def completions() -> Iterator[Any]:
    yield from _module(CompletionResponseStreamChoice=Choice, CompletionStreamResponse=Chunk)


@pytest.fixture
def chats() -> Iterator[Any]:
    yield from _module(
        DeltaMessage=Delta,
        ChatCompletionResponseStreamChoice=ChatChoice,
        ChatCompletionStreamResponse=ChatChunk,
    )


def _module(**models: Any) -> Iterator[ModuleType]:
    name = f"models_of_{next(iter(models))}"
    module = sys.modules[name] = ModuleType(name)
    vars(module).update(models)
    yield module
    del sys.modules[name]


def test_every_chunk_has_the_bytes_of_the_models(completions: Any, chats: Any) -> None:
    by_models = list(written(completions, chats))
    assert all(replaced(completions, chats).values())
    assert list(written(completions, chats)) == by_models


def chat_chunk(chats: Any, delta: Any) -> Any:
    choice = chats.ChatCompletionResponseStreamChoice(
        index=0, delta=delta, logprobs=None, finish_reason=None, token_ids=None
    )
    return chats.ChatCompletionStreamResponse(
        id="i", object="o", created=1, choices=[choice], model="m"
    )


def test_a_usual_chunk_is_written_without_its_models(
    completions: Any, chats: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(completions, chats)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is built")

    for model in (Delta, ChatChoice, Choice, Chunk, ChatChunk):
        monkeypatch.setattr(model, "__init__", fail)
    assert next(written(completions, chats)).startswith('{"id":"x-1"')
    chunk = chat_chunk(chats, chats.DeltaMessage(content="é"))
    assert '"delta":{"content":"é"}' in chunk.model_dump_json(exclude_unset=True)


def test_what_a_parser_found_in_the_text_is_written_by_its_model(
    completions: Any, chats: Any
) -> None:
    replaced(completions, chats)
    chunk = chat_chunk(chats, Delta(tool_calls=[1, 2]))
    (choice,) = chunk.choices
    # vLLM's filter treats the replacement as a delta.
    choice.tool_calls = choice.tool_calls[:1]
    assert '"delta":{"tool_calls":[1]}' in chunk.model_dump_json(exclude_unset=True)


def test_a_value_that_the_stand_in_does_not_know_reaches_the_client(
    completions: Any, chats: Any
) -> None:
    replaced(completions, chats)
    choice = completions.CompletionResponseStreamChoice(index=0, text="a", logprobs=[0.5])
    chunk = completions.CompletionStreamResponse(
        id="i", object="o", created=1, model="m", choices=[choice]
    )
    assert '{"index":0,"text":"a","logprobs":[0.5]}' in chunk.model_dump_json(exclude_unset=True)


def test_models_that_write_other_bytes_stay(
    completions: Any, chats: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Reordered(BaseModel):
        choices: list[Choice]
        id: str
        object: str
        created: int
        model: str

    completions.CompletionStreamResponse = Reordered
    del chats.DeltaMessage
    chats.DeltaMessage = None
    assert not any(replaced(completions, chats).values())
    assert len(caplog.records) == 2
