"""Separates the prefix cache entries of requests with different API keys.

If the beginning of a prompt is in the engine's prefix cache, the first token arrives sooner.
Without a salt, a client could therefore measure which prompts other clients have sent.
"""

import hashlib
import hmac
import secrets
from contextvars import ContextVar

_SECRET = secrets.token_bytes(32)
"""Random key of this process. It prevents clients from choosing a salt that equals another client's
salt."""

current_key: ContextVar[bytes | None] = ContextVar("current_key", default=None)
"""Digest of the API key of the current HTTP request; None if its prompts share the cache with other
requests."""


def salted(own: str | None) -> str | None:
    """Return the salt of the current request. `own` is the salt that the client sent."""
    key = current_key.get()
    if key is None:
        return own
    return hmac.new(_SECRET, key + (own or "").encode(), hashlib.sha256).hexdigest()
