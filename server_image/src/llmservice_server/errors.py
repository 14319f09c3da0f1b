"""Builds the error responses of the API port in OpenAI's envelope, as vLLM formats it."""

import traceback
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llmservice_server.request_ids import current_request_id

RETRY_AFTER_SECONDS = 5
"""Value of Retry-After in seconds. It is an estimate: within a few seconds, an endpoint leaves a
Service, or a full queue gets room again."""

RETRY_HEADER = "x-llm-retry"
OTHER_REPLICA = "other-replica"
"""Value of `RETRY_HEADER` in a response with status 503. It means that no part of an answer was
sent and that another replica may serve the request. A refusal that would be the same on every
replica has another status."""

ENGINE_FAILED_MESSAGE = "the engine of this replica failed; send the request again"


class RequestRefused(Exception):
    """The request cannot be served as it is; the text says what to change."""

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class EngineUnavailable(Exception):
    """The engine cannot accept or finish a request now."""


def error_body(message: str, status: int, parameter: str | None = None) -> dict[str, object]:
    """Return the envelope for a message."""
    kind = HTTPStatus(status).phrase.replace(" ", "") + ("" if status >= 500 else "Error")
    return {"error": {"message": message, "type": kind, "param": parameter, "code": status}}


def error_response(message: str, status: int, parameter: str | None = None) -> JSONResponse:
    """Return the envelope as a response. With status 503, it has the header Retry-After."""
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else None
    return JSONResponse(error_body(message, status, parameter), status, headers)


async def answer_refused(_: Request, refusal: Exception) -> Response:
    """Answer RequestRefused with 400."""
    return error_response(str(refusal), 400, getattr(refusal, "parameter", None))


async def answer_unavailable(_: Request, failure: Exception) -> Response:
    """Answer with 503 if the engine is dead or stopping; another replica can serve the request."""
    return error_response(str(failure) or "the engine is not available", 503)


async def answer_unprocessable(_: Request, failure: Exception) -> Response:
    """Answer with 500 if vLLM's front end failed on a request and has no message for the client."""
    cause = failure.__cause__ or failure
    return error_response(
        f"the engine could not process this request ({type(cause).__name__}{_in_the_log()})",
        500,
    )


async def answer_http_exception(request: Request, failure: Exception) -> Response:
    """Answer requests that the framework refuses: unknown path, wrong method, unreadable body."""
    assert isinstance(failure, HTTPException)
    message = failure.detail
    if message == HTTPStatus.NOT_FOUND.phrase:
        # By default, the gate admits only paths that some kind of model serves.
        message = f"this model does not serve {request.scope['path']}; GET /docs lists its routes"
    response = error_response(message, failure.status_code)
    response.headers.update(failure.headers or {})
    return response


async def answer_unexpected(_: Request, failure: Exception) -> Response:
    """Answer an unexpected error with 400 if the request caused it, otherwise with 500."""
    return unexpected_error(failure)


def unexpected_error(failure: Exception) -> JSONResponse:
    """Return the response to an unexpected error, without the text of the exception."""
    if _broke_while_reading(failure):
        return error_response(f"the body cannot be parsed ({type(failure).__name__})", 400)
    return error_response(f"internal error ({type(failure).__name__}{_in_the_log()})", 500)


def _broke_while_reading(failure: Exception) -> bool:
    """Return whether the error occurred while the framework parsed the request into arguments.

    The request causes such an error, for example when vLLM's validators meet an unexpected type.
    """
    return was_raised_in("solve_dependencies", failure)


def was_raised_in(function: str, failure: Exception) -> bool:
    """Return whether an error occurred within a function of this name."""
    frames = traceback.walk_tb(failure.__traceback__)
    return any(frame.f_code.co_name == function for frame, _ in frames)


def _in_the_log() -> str:
    """Return a note that the log has more under the request's id; empty outside a request."""
    request_id = current_request_id.get()
    return f"; the log has more under requestId {request_id}" if request_id else ""
