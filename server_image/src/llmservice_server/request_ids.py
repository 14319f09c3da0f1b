"""Gives each request an id for its response and log lines: the client's own id or a new one."""

import re
import uuid
from contextvars import ContextVar

from starlette.types import Scope

HEADER = b"x-request-id"

_ACCEPTED = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
"""Pattern of an id. It accepts the characters that clients and proxies use, except those with a
special meaning in headers or logs."""

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Id of the request of this task; None outside a request."""


def new_request_id() -> str:
    """Return a new unique id."""
    return uuid.uuid4().hex


def identify(scope: Scope) -> str:
    """Return the request's id, and set it in the headers that the application reads.

    An invalid id is replaced, not refused, because only its sender uses it.
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
