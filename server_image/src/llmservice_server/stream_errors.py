"""How an error of a stream is told, by the route that streams.

Each API has an event of its own for it, and its clients take no other for an error. On two routes
vLLM lets no error through as it was; both are mended here.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llmservice_server.errors import error_body
from llmservice_server.streaming import event, prefetched

BARE_ERROR = 'data: {"error"'
"""How an event begins by which vLLM tells an error on the routes of completions."""

NAMED_ERROR = "event: error\n"
"""How one begins elsewhere."""

_EVENTS_BEFORE_THE_ENGINE = 2
"""response.created and response.in_progress, which vLLM sends before it asks the engine."""


def error_event(route: str | None, message: str, status: int, number: int) -> str:
    """Return the event that ends a broken stream of a route; `number` events came before it."""
    body = error_body(message, status)
    if route == "/v1/messages":
        error = {"type": _anthropic_type(status), "message": message}
        return event({"type": "error", "error": error}, "error")
    if route is not None and route.startswith("/v1/responses"):
        # What the API defines, and the envelope: OpenAI's libraries raise only at that.
        defined = {"type": "error", "sequence_number": number, "code": str(status)}
        return event({**defined, "message": message, "param": None, **body}, "error")
    return event(body)


def pass_errors_of_messages(messages: Any) -> None:
    """Let errors pass vLLM's /v1/messages as its chat tells them.

    It makes the stream of a message from that of a chat, and takes an error in there for a piece
    that it cannot read.
    """
    convert = messages.message_stream_converter

    async def convert_until_error(
        pieces: AsyncGenerator[str, None],
    ) -> AsyncGenerator[str, None]:
        errors = []

        async def until_error() -> AsyncGenerator[str, None]:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.startswith(BARE_ERROR):
                        errors.append(piece)
                        return
                    yield piece

        async with aclosing(convert(until_error())) as converted:
            async for each in converted:
                yield each
        for error in errors:
            yield error

    messages.message_stream_converter = convert_until_error


def begin_responses_with_the_engine(responses: Any) -> None:
    """Let vLLM's /v1/responses start a stream only when the engine has begun to answer.

    An error before that is then answered like that of a request without a stream.
    """
    create = responses.create_responses

    async def create_begun(request: Any, raw_request: Any = None) -> Any:
        answer = await create(request, raw_request)
        # What runs in the background is to be known by its id at once.
        if isinstance(answer, AsyncGenerator) and not request.background:
            return await prefetched(answer, _EVENTS_BEFORE_THE_ENGINE + 1)
        return answer

    responses.create_responses = create_begun


def _anthropic_type(status: int) -> str:
    """Return what Anthropic's API calls an error of a status."""
    if status == 503:
        return "overloaded_error"
    if status == 504:
        return "timeout_error"
    return "invalid_request_error" if status < 500 else "api_error"
