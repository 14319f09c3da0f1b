"""Tests errors that vLLM loses in its streams, with fakes that lose them in the same way."""

import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from llmservice_server.errors import ENGINE_FAILED_MESSAGE
from llmservice_server.stream_errors import (
    BARE_ERROR,
    begin_responses_with_the_engine,
    pass_errors_of_messages,
)

ERROR = 'data: {"error": {"message": "it broke", "code": 503}}\n\n'
END = "data: [DONE]\n\n"


class Dead(Exception):
    """Represents the error of vLLM's dead engine."""


class Creating:
    """Returns the request itself. Without a request, it behaves as if the engine had died."""

    async def create_messages(self, request: Any, raw_request: Any = None) -> Any:
        if request is None:
            raise Dead
        return request

    def create_error_response(self, *error: Any) -> Any:
        return error


class Messages(Creating):
    """Converts pieces to events. Like vLLM, it drops the text of an error."""

    async def message_stream_converter(
        self, pieces: AsyncGenerator[str, None]
    ) -> AsyncGenerator[str, None]:
        async for piece in pieces:
            if piece.startswith('data: {"error"'):
                yield 'event: error\ndata: {"error": {"message": "1 validation error"}}\n\n'
            else:
                yield "event: message_stop\n" if piece == END else f"event: piece\n{piece}"


async def of(*items: Any) -> AsyncGenerator[Any, None]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


@pytest.fixture
def messages() -> Messages:
    made = Messages()
    pass_errors_of_messages(made, Dead)
    return made


@pytest.mark.parametrize("before", [[], ["data: a\n\n"]], ids=["first", "later"])
async def test_an_error_in_a_message_is_the_last_of_its_events_and_as_it_was(
    messages: Messages, before: list[str]
) -> None:
    events = [each async for each in messages.message_stream_converter(of(*before, ERROR, END))]
    assert events == [*(f"event: piece\n{piece}" for piece in before), ERROR]


async def test_a_message_without_an_error_is_as_it_was(messages: Messages) -> None:
    events = [each async for each in messages.message_stream_converter(of("data: a\n\n", END))]
    assert events == ["event: piece\ndata: a\n\n", "event: message_stop\n"]


async def test_the_death_of_the_engine_is_an_error_that_another_replica_can_mend(
    messages: Any,
) -> None:
    assert await messages.create_messages("a message") == "a message"
    assert await messages.create_messages(None) == (ENGINE_FAILED_MESSAGE, "overloaded_error", 503)


class Chunk(BaseModel):
    """A piece of a chat as an object."""

    text: str


class Error(BaseModel):
    """A piece of a chat that reports an error."""

    class Details(BaseModel):
        message: str
        code: int

    error: Details


class MessagesOfObjects(Creating):
    """Converts pieces to events. Like vLLM since 0.33, it always ends with `message_stop`."""

    async def message_stream_converter(
        self, pieces: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[str, None]:
        async for piece in pieces:
            yield f"event: piece\ndata: {piece.text}\n\n"
        yield "event: message_stop\n"


@pytest.mark.parametrize("before", [[], [Chunk(text="a")]], ids=["first", "later"])
async def test_an_error_among_objects_is_the_last_event_of_a_message(before: list[Chunk]) -> None:
    messages = MessagesOfObjects()
    pass_errors_of_messages(messages, Dead)
    error = Error(error=Error.Details(message="it broke", code=503))
    events = [each async for each in messages.message_stream_converter(of(*before, error))]
    assert events[:-1] == ["event: piece\ndata: a\n\n"] * len(before)
    assert json.loads(events[-1].removeprefix("data: ")) == error.model_dump()
    assert events[-1].startswith(BARE_ERROR)


class Responses:
    """Returns the given answer to every request."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        return self._answer


def begun(answer: Any) -> Responses:
    responses = Responses(answer)
    begin_responses_with_the_engine(responses)
    return responses


FOREGROUND = SimpleNamespace(background=False)


async def test_an_error_before_the_engine_has_begun_is_raised_before_the_response_starts() -> None:
    responses = begun(of("created", "in_progress", KeyError("it broke")))
    with pytest.raises(KeyError, match="it broke"):
        await responses.create_responses(FOREGROUND)


async def test_a_response_has_all_of_its_events() -> None:
    all_of_them = ["created", "in_progress", "delta", "completed"]
    answer = await begun(of(*all_of_them)).create_responses(FOREGROUND)
    assert [each async for each in answer] == all_of_them


async def test_a_response_in_the_background_is_known_before_the_engine_has_begun() -> None:
    stream = of("created", "in_progress", KeyError("it broke"))
    request = SimpleNamespace(background=True)
    answer = await begun(stream).create_responses(request)
    assert await anext(answer) == "created"


async def test_a_response_that_is_no_stream_is_as_it_was() -> None:
    assert await begun({"id": "resp_1"}).create_responses(FOREGROUND) == {"id": "resp_1"}
