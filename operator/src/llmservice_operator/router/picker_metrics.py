"""The metrics of the picker. The supervisor adds them to those of the pod."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmservice_operator.routing.router import Pick

SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

PREFIX: Final = "llmservice_router"

MOST_KEYS: Final = 100
"""Maximum number of keys that are counted separately. A Secret whose keys are often replaced would
otherwise add metrics for ever."""
OTHER_KEYS: Final = "other"
"""Name under which all further keys are counted together."""


class PickerMetrics:
    """Counts the requests of clients, the picks, and how well the picks were foreseen."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests of clients by outcome", "outcome")
        self._picks = self._counter("picks", "Picks of a replica by reason", "reason")
        self._retries = self._counter("retries", "Requests that a second replica has answered")
        self._refused = self._counter(
            "digests_refused", "Requests that are refused because they ended two replicas"
        )
        self._tokens = self._counter("prompt_tokens", "Estimated tokens of the picks' prompts")
        self._saved = self._counter(
            "cached_prompt_tokens",
            "Tokens of these prompts that the replica's cache should contain",
        )
        self._expected = self._seconds(
            "expected_first_token_seconds", "Expected time from the pick to the first token"
        )
        self._real = self._seconds(
            "first_token_seconds", "Real time from the pick to the first token, of the same streams"
        )
        self._error = self._seconds(
            "first_token_error_seconds", "Difference between the expected and the real time"
        )
        self._held = self._seconds("held_seconds", "Time for which a request was held")
        self._admitted = self._counter(
            "key_requests", "Requests that the limits of their API key admitted", "key"
        )
        self._limited = self._counter(
            "key_limited", "Requests that a limit of their API key refused", "key", "limit"
        )
        self._keys: set[str] = set()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, buckets=SECONDS, registry=self._registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read at each scrape."""
        Gauge(f"{PREFIX}_{name}", text, registry=self._registry).set_function(read)

    def note_outcome(self, outcome: str) -> None:
        """Count a request of a client."""
        self._requests.labels(outcome).inc()

    def note_pick(self, pick: Pick, reason: str) -> None:
        """Count a pick of a replica."""
        self._picks.labels(reason).inc()
        self._tokens.inc(pick.dispatch.tokens)
        self._saved.inc(max(pick.dispatch.tokens - pick.dispatch.uncached, 0.0))

    def note_held(self, seconds: float) -> None:
        """Count a request that was held and is held no longer."""
        self._held.observe(seconds)

    def note_first_token(self, pick: Pick, now: float) -> None:
        """Compare the expected time of the first token of a stream with the present time."""
        if pick.seconds is None:
            return
        real = max(now - pick.dispatch.sent, 0.0)
        self._expected.observe(pick.seconds)
        self._real.observe(real)
        self._error.observe(abs(real - pick.seconds))

    def note_retry(self) -> None:
        """Count a request that a second replica has answered."""
        self._retries.inc()

    def note_refused_digest(self) -> None:
        """Count a request that is refused from now on."""
        self._refused.inc()

    def note_admitted(self, key: str) -> None:
        """Count a request that the limits of the key of this name have admitted."""
        self._admitted.labels(self._label(key)).inc()

    def note_limited(self, key: str, limit: str) -> None:
        """Count a request that a limit of the key of this name has refused."""
        self._limited.labels(self._label(key), limit).inc()

    def _label(self, key: str) -> str:
        if len(self._keys) < MOST_KEYS:
            self._keys.add(key)
        return key if key in self._keys else OTHER_KEYS

    def render(self) -> bytes:
        """Return the text for Prometheus."""
        return generate_latest(self._registry)
