"""Turns the responses of the API server that are no objects into errors of the project."""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from llmservice_operator.errors import (
    ClusterError,
    Conflict,
    Forbidden,
    NotFound,
    Rejected,
)

LONGEST_RETRY_AFTER_SECONDS = 300.0
"""Longest delay in seconds that a response may request. A longer delay is cut to this one, because
it would stop the work on a service."""
_DENIED = re.compile("^admission webhook .* denied the request")


def foreign_answer(method: str, path: str, text: bytes = b"") -> ClusterError:
    """Return the error for a response that an API server cannot have sent. A proxy may have sent
    it.
    """
    said = " ".join(text[:200].decode(errors="replace").split())
    return ClusterError(
        f"{method} {path}: the answer is not one of the API server, but perhaps of a proxy between"
        f" it and the operator{f': {said}' if said else ''}"
    )


def refusal(
    request: str, status: int, text: bytes, headers: Mapping[str, str] = MappingProxyType({})
) -> ClusterError:
    """Return the exception for an error response, with the server's message. This message names the
    verb and the resource.
    """
    try:
        message, is_the_servers = json.loads(text)["message"], True
    except (ValueError, KeyError, TypeError, RecursionError):
        message = text.decode(errors="replace")[:500]
        # A 404 page of the API server itself, without a Status object, means that nothing is served
        # at the path. Any other page comes from a proxy, and contains no information about the
        # object.
        is_the_servers = status == 404 and text.strip() == b"404 page not found"
    classes = {
        400: Rejected,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        422: Rejected,
    }
    # An admission webhook chooses the status of its refusal, so its 404 does not mean that the
    # object is missing.
    is_a_webhooks = status in (404, 409) and _DENIED.search(str(message)) is not None
    seconds = headers.get("Retry-After", "")
    return (
        classes.get(status, ClusterError) if is_the_servers and not is_a_webhooks else ClusterError
    )(
        f"{request}: {status}: {message}",
        status,
        min(float(seconds), LONGEST_RETRY_AFTER_SECONDS) if seconds.isdecimal() else None,
    )
