"""Lists the paths of the API port that belong to serving. All others answer 404.

vLLM registers administration routes (pausing, weights, adapters, scaling, profiling) beside the
serving ones, most of them without a key. An allowlist keeps the routes of a later vLLM closed until
they have been reviewed.
"""

import re

_SERVING_PATHS = frozenset(
    {
        "/docs",
        "/openapi.json",
        "/health",
        "/version",
        "/generate",
        "/tokenize",
        "/detokenize",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/rerank",
        "/v1/responses",
        "/v1/score",
    }
)

# An id begins with resp_. Any other word may be another route of vLLM below /v1/responses.
_SERVING_TEMPLATES = tuple(
    (re.compile(re.sub(r"\{\w+\}", "resp_[^/]+", template)), template)
    for template in ("/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel")
)


def is_documented(template: str) -> bool:
    """Return whether a route, in the form of an OpenAPI document, belongs to serving."""
    return template in _SERVING_PATHS or any(template == known for _, known in _SERVING_TEMPLATES)


def serving_route(path: str) -> str | None:
    """Return the route of a path as its metrics label; None when the path is not served."""
    if path in _SERVING_PATHS:
        return path
    for pattern, template in _SERVING_TEMPLATES:
        if pattern.fullmatch(path):
            return template
    return None
