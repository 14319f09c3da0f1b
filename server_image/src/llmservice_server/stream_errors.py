"""Builds the error event that the clients of each route's streams recognize.

Each API has its own error event, and its clients recognize no other. On two routes, vLLM changes
errors or their status. This module corrects both routes.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, NamedTuple

from llmservice_server.errors import ENGINE_FAILED_MESSAGE, error_body
from llmservice_server.streaming import event, prefetched

BARE_ERROR = 'data: {"error"'
"""Prefix of vLLM's error events on the completions routes."""

NAMED_ERROR = "event: error\n"
"""Prefix of error events on other routes."""

_EVENTS_BEFORE_THE_ENGINE = 2
"""Number of events that vLLM sends before it sends the request to the engine: response.created and
response.in_progress."""


class StreamError(NamedTuple):
    """Error of a stream."""

    message: str
    status: int
    parameter: str | None = None
    """Parameter of the request that caused the error; None if it is unknown."""


def error_event(route: str | None, error: StreamError, number: int) -> str:
    """Return the event that ends a broken stream of a route, after `number` events."""
    body = error_body(*error)
    if route == "/v1/messages":
        of_anthropic = {"type": _anthropic_type(error.status), "message": error.message}
        return event({"type": "error", "error": of_anthropic}, "error")
    if route is not None and route.startswith("/v1/responses"):
        # The event has the API's own fields and the envelope. OpenAI's libraries raise an error
        # only if the envelope is there.
        defined = {"type": "error", "sequence_number": number, "code": str(error.status)}
        details = {"message": error.message, "param": error.parameter}
        return event({**defined, **details, **body}, "error")
    return event(body)


def pass_errors_of_messages(messages: Any, engine_died: type[Exception]) -> None:
    """Make vLLM's /v1/messages pass on error events, and answer 503 when the engine dies.

    vLLM converts the stream of a chat to the stream of a message, and treats an error event as a
    piece that it cannot read. Error events are therefore passed on in the form of the chat route.
    When the engine dies, vLLM answers a non-streaming request on this route with status 500, and on
    its other routes with 503.
    """
    convert, create = messages.message_stream_converter, messages.create_messages

    async def create_or_report(request: Any, raw_request: Any = None) -> Any:
        try:
            return await create(request, raw_request)
        except engine_died:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return messages.create_error_response(
                ENGINE_FAILED_MESSAGE, _anthropic_type(status), status
            )

    async def convert_until_error(pieces: AsyncGenerator[Any, None]) -> AsyncGenerator[str, None]:
        errors = []

        async def until_error() -> AsyncGenerator[Any, None]:
            async with aclosing(pieces):
                async for piece in pieces:
                    if error := _error_of_chat(piece):
                        errors.append(error)
                        return
                    yield piece

        async with aclosing(convert(until_error())) as converted:
            async for each in converted:
                if errors:
                    # Since vLLM 0.33, the conversion adds the events that end a complete stream.
                    # These events would hide the error, so they are dropped.
                    break
                yield each
        for error in errors:
            yield error

    messages.message_stream_converter = convert_until_error
    messages.create_messages = create_or_report


def _error_of_chat(piece: Any) -> str | None:
    """Return the error event of a piece of a chat; None for any other piece.

    Before vLLM 0.33, a piece is an event. Since 0.33, it is the object from which the event is
    made.
    """
    if isinstance(piece, str):
        return piece if piece.startswith(BARE_ERROR) else None
    error = getattr(piece, "error", None)
    return None if error is None else event({"error": error.model_dump()})


def begin_responses_with_the_engine(responses: Any) -> None:
    """Start a stream of vLLM's /v1/responses only when the engine has begun to answer.

    An earlier error then gets the same response as for a request without a stream.
    """
    create = responses.create_responses

    async def create_begun(request: Any, raw_request: Any = None) -> Any:
        answer = await create(request, raw_request)
        # The client must receive the id of a background response at once.
        if isinstance(answer, AsyncGenerator) and not request.background:
            return await prefetched(answer, _EVENTS_BEFORE_THE_ENGINE + 1)
        return answer

    responses.create_responses = create_begun


def _anthropic_type(status: int) -> str:
    """Return the error type of Anthropic's API for a status."""
    if status == 503:
        return "overloaded_error"
    if status == 504:
        return "timeout_error"
    return "invalid_request_error" if status < 500 else "api_error"
