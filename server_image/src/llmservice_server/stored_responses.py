"""Names a stored response in a header, so that a router sends later requests about it here.

Each replica has a store of its own. The header is absent unless vLLM's store is switched on.
"""

import re
from typing import Any

from starlette.types import Scope

STORED_HEADER = "x-llm-stored-response"
"""Header with the id of a response that this replica has stored."""

_KEY = "llmservice.stored_response"

_ID = re.compile("[A-Za-z0-9_-]{1,128}")
"""Form of the ids that are put into the header. A client may choose the id of its response."""


def note_stored_responses(responses: Any) -> None:
    """Make vLLM's /v1/responses note the id of each response that it stores."""
    create = responses.create_responses

    async def create_noted(request: Any, raw_request: Any = None) -> Any:
        answer = await create(request, raw_request)
        # If the store is off, vLLM has set `store` to False.
        if raw_request is not None and request.store and _ID.fullmatch(request.request_id):
            raw_request.scope[_KEY] = request.request_id
        return answer

    responses.create_responses = create_noted


def stored_response(scope: Scope) -> str | None:
    """Return the id of the response that was stored for a request; None if none was stored."""
    found: str | None = scope.get(_KEY)
    return found
