"""The id of a request: the client's own or a new one, on its answer and in its lines of the log."""

import re
import uuid
from contextvars import ContextVar

from starlette.types import Scope

HEADER = b"x-request-id"

_ACCEPTED = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
"""What clients and proxies use, and nothing that means something in a header or a log."""

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""The request that is being answered in this task; None outside of one."""


def new_request_id() -> str:
    """Return an id that nobody else has."""
    return uuid.uuid4().hex


def identify(scope: Scope) -> str:
    """Return the request's id, and make it the one that the application reads from the headers.

    An id that does not look like one is replaced, not refused: it is of no use to anybody else.
    """
    found = [value for name, value in scope["headers"] if name == HEADER]
    if len(found) == 1 and _ACCEPTED.fullmatch(found[0]):
        request_id = str(found[0], "ascii")
    else:
        request_id = new_request_id()
        others = [header for header in scope["headers"] if header[0] != HEADER]
        scope["headers"] = [*others, (HEADER, request_id.encode())]
    current_request_id.set(request_id)
    return request_id
