"""Keeps apart what requests with different API keys leave in the engine's prefix cache.

A prompt whose beginning is in the cache is answered sooner. Without a salt, a client could find out
by the time to the first token which prompts other clients have sent.
"""

import hashlib
import hmac
import secrets
from contextvars import ContextVar

_SECRET = secrets.token_bytes(32)
"""Key of this process. Nobody can choose a salt that equals another client's."""

current_key: ContextVar[bytes | None] = ContextVar("current_key", default=None)
"""Digest of the API key of the current HTTP request; None if its prompts are not kept apart."""


def salted(own: str | None) -> str | None:
    """Return the salt of the current request, given the one that its client asks for."""
    key = current_key.get()
    if key is None:
        return own
    return hmac.new(_SECRET, key + (own or "").encode(), hashlib.sha256).hexdigest()
