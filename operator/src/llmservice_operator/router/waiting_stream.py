"""The stream of events to a client whose request waits for a replica."""

import json
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

COMMENT: Final = b": waiting for a replica\n\n"
HEADERS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
REQUEST_ID_HEADER: Final = "x-request-id"


def error_body(message: str, status: int) -> dict[str, Any]:
    """Return an error in OpenAI's envelope, in the form that the model server uses."""
    kind = HTTPStatus(status).phrase.replace(" ", "") + ("" if status >= 500 else "Error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def error_event(path: str, message: str, status: int) -> bytes:
    """Return the event that ends a stream of this API with an error.

    Each API has its own event for errors, and its clients recognize no other event.
    """
    body = error_body(message, status)
    if path == "/v1/messages":
        kind = "overloaded_error" if status == 503 else "api_error"
        return _event({"type": "error", "error": {"type": kind, "message": message}}, "error")
    if path.startswith("/v1/responses"):
        defined = {"type": "error", "sequence_number": 0, "code": str(status)}
        return _event({**defined, "message": message, "param": None, **body}, "error")
    return _event(body)


def _event(data: dict[str, Any], name: str | None = None) -> bytes:
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


class WaitingStream:
    """The response to a client that expects a stream. It begins with the first comment."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None
        """The response; None before it has begun."""

    async def comment(self) -> None:
        """Send a comment, which clients ignore. The first one also sends the status 200."""
        if self.response is None:
            self.response = web.StreamResponse(headers=HEADERS)
            if identifier := self._request.headers.get(REQUEST_ID_HEADER):
                self.response.headers[REQUEST_ID_HEADER] = identifier
            await self.response.prepare(self._request)
        await self.response.write(COMMENT)

    async def fail(self, message: str, status: int) -> web.StreamResponse:
        """End the request with an error, which is an event if the stream has begun."""
        if self.response is None:
            return refusal(message, status)
        await self.response.write(error_event(self._request.path, message, status))
        return self.response


def refusal(message: str, status: int) -> web.Response:
    """Return the response for a request that is not answered by a replica."""
    headers = {"retry-after": "5"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return web.json_response(error_body(message, status), status=status, headers=headers)
