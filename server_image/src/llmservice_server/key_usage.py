"""Counts requests and tokens by the name of their API key."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from llmservice_server.keys import current_key_name

MOST_KEYS = 100
"""Maximum number of keys that are counted separately. A Secret whose keys are often replaced would
otherwise add metrics for ever."""

OTHER_KEYS = "other"
"""Name under which all further keys are counted together."""

_KNOWN_REQUESTS = 10_000
"""Number of the latest requests whose key is known when they finish. A request that a client ends
does not finish, so requests must be forgotten. A replica has far fewer requests in progress."""


@dataclass
class Usage:
    """Usage of one key since the start of the process."""

    requests: int = 0
    """Number of answered requests, including those that were answered with an error."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


class KeyUsage:
    """The usage of each key. The event loop of the API updates it."""

    def __init__(self) -> None:
        self.by_key: dict[str, Usage] = {}
        self._keys_of_requests: OrderedDict[str, str] = OrderedDict()

    def answered(self, key: str) -> None:
        """Count an HTTP request that was answered for the key of this name."""
        self._of(key).requests += 1

    def begin(self, request_id: str) -> None:
        """Remember the key of the current HTTP request, if it has one, for a request to the engine
        with this id.
        """
        if (key := current_key_name.get()) is None:
            return
        self._keys_of_requests[request_id] = key
        self._keys_of_requests.move_to_end(request_id)
        if len(self._keys_of_requests) > _KNOWN_REQUESTS:
            self._keys_of_requests.popitem(last=False)

    def finish(self, request: Any) -> None:
        """Count the tokens of a finished request, given vLLM's statistics of the request.

        With several answers, the request finishes once for each answer. Its prompt is counted for
        each of them, as in vLLM's metrics.
        """
        if (key := self._keys_of_requests.get(getattr(request, "request_id", None) or "")) is None:
            return
        usage = self._of(key)
        usage.prompt_tokens += request.num_prompt_tokens
        usage.generated_tokens += request.num_generation_tokens

    def report(self) -> list[dict[str, object]]:
        """Return the tokens of each key for /autoscale. Any thread may call this."""
        return [
            {"key": key, "prompt": used.prompt_tokens, "generated": used.generated_tokens}
            for key, used in self.by_key.copy().items()
        ]

    def _of(self, key: str) -> Usage:
        if key not in self.by_key and len(self.by_key) >= MOST_KEYS:
            key = OTHER_KEYS
        return self.by_key.setdefault(key, Usage())
