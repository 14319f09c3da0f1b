"""Decides which pages of other sites may call the API from a browser and read its answers.

The gate applies the rules before it checks the API key, because a browser requests permission
without the page's key. A response without CORS headers is hidden from the page by the browser, even
an error response of the gate.
"""

from argparse import Namespace
from functools import partial
from typing import Self

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_SHOWN_HEADERS = ("request-id", "retry-after", "x-request-id")
"""Response headers that a page may read in addition to the headers that browsers always show."""


class Origins:
    """The rules for other origins, as vLLM's flags set them."""

    def __init__(self, rules: CORSMiddleware) -> None:
        self._rules = rules

    @classmethod
    def from_arguments(cls, arguments: Namespace) -> Self | None:
        """Return the rules of parsed flags; None when no other origin is allowed."""
        if not arguments.allowed_origins:
            return None
        return cls(
            CORSMiddleware(
                _unused,
                allow_origins=arguments.allowed_origins,
                allow_methods=arguments.allowed_methods,
                allow_headers=arguments.allowed_headers,
                allow_credentials=arguments.allow_credentials,
                expose_headers=_SHOWN_HEADERS,
            )
        )

    def permission(self, scope: Scope) -> Response | None:
        """Return the response to a browser's preflight request; None for any other request."""
        headers = Headers(scope=scope)
        if scope["method"] != "OPTIONS" or not {
            "origin",
            "access-control-request-method",
        } <= set(headers):
            return None
        return self._rules.preflight_response(headers)

    def shown_to(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that adds the headers that let the page read the response."""
        return partial(self._rules.send, send=send, request_headers=Headers(scope=scope))


async def _unused(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("only the rules of the middleware are used")
