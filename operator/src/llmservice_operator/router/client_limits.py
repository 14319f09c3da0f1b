"""Applies the limits of clients to the requests that pass through the picker."""

from collections.abc import Mapping
from math import ceil, inf
from typing import Final

from llmservice_operator.router.admission import Client, Refusal
from llmservice_operator.router.bodies import Body
from llmservice_operator.router.chooser import Chooser, Chosen
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router_settings import LimitsOfClients
from llmservice_operator.routing.limits import Exceeded, Limiter, LimitName, Limits
from llmservice_operator.routing.settlements import Reservation

PROMPT_MARGIN: Final = 1.25
"""Factor by which the reserved tokens of a prompt exceed the estimate, because some prompts have
more tokens per byte than others."""

TEMPLATE_TOKENS: Final = 32
"""Tokens that are reserved for the parts of a prompt that the model's template adds."""

_GENERATING_PATHS: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/generate", "/v1/audio/transcriptions", "/v1/audio/translations"),
    }
)
"""Paths whose answers contain generated tokens."""

_NEVER: Final[Mapping[LimitName, str]] = {
    "tokens": "the prompt and the longest answer have {tokens} tokens, and this API key may use "
    "{limit} tokens per minute; lower max_tokens, or send a shorter prompt",
}
_LATER: Final[Mapping[LimitName, str]] = {
    "requests": "this API key may send {limit} requests per minute; try again in {seconds} s",
    "tokens": "this API key may use {limit} tokens per minute; try again in {seconds} s",
    "concurrent": "this API key may have {limit} requests in progress at the same time; try again "
    "when one of them has ended",
}


def limiter_of(settings: LimitsOfClients) -> Limiter:
    """Return the limiter with the limits in the settings."""
    of_client = {name: Limits(**each.model_dump()) for name, each in settings.keys.items()}
    return Limiter(Limits(**settings.default.model_dump()), of_client)


class ClientLimits:
    """The limits of clients, and what each request uses of them."""

    def __init__(self, limiter: Limiter, chooser: Chooser, metrics: PickerMetrics) -> None:
        self._limiter = limiter
        self._chooser = chooser
        self._metrics = metrics

    def refusal(self, client: Client) -> Refusal | None:
        """Return the refusal of a request whose body has not been read; None if it may go on."""
        exceeded = self._limiter.why_not(client.name, 0, self._chooser.clock())
        return None if exceeded is None else self._refuse(client, exceeded, 0)

    def admit(self, client: Client, path: str, body: Body) -> Reservation | Refusal:
        """Reserve what a request may use, or refuse the request.

        The caller must end each reservation once.
        """
        tokens = self._tokens(path, body)
        found = self._limiter.admit(client.name, tokens, self._chooser.clock())
        if isinstance(found, Exceeded):
            return self._refuse(client, found, tokens)
        self._metrics.note_admitted(client.name)
        return found

    def sent(self, reservation: Reservation, chosen: Chosen) -> None:
        """Note the replica that was chosen for a request."""
        self._limiter.sent(reservation, chosen.replica)

    def answered(self, reservation: Reservation, chosen: Chosen, address: str) -> None:
        """Note which of the chosen replicas has begun to answer."""
        if address in chosen.addresses[1:]:
            self._limiter.sent(reservation, self._chooser.name_of(address))

    def cancel(self, reservation: Reservation) -> None:
        """Give a reservation back, because no replica got the request."""
        self._limiter.cancel(reservation, self._chooser.clock())

    def end_forwarded(self, reservation: Reservation) -> None:
        """Note the end of a request that waited in the forwarder."""
        self._limiter.end_elsewhere(reservation, self._chooser.clock())

    def end(
        self, reservation: Reservation, chosen: Chosen, begun: float | None, *, is_whole: bool
    ) -> None:
        """Note the end of a request that was sent to a replica.

        `begun` is the time at which its answer began; None if it did not. With `is_whole`, the
        replica has certainly counted the request, or refused it.
        """
        now = self._chooser.clock()
        spent = 0.0 if is_whole else self._chooser.tokens_until(chosen, begun, now)
        self._limiter.end(reservation, spent, now)

    def headers(self, client: Client) -> dict[str, str]:
        """Return the headers that tell a client what is left of its limits.

        They are those of OpenAI's API.
        """
        headers = dict[str, str]()
        for name, each in self._limiter.standing(client.name, self._chooser.clock()).items():
            headers[f"x-ratelimit-limit-{name}"] = str(each.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(each.remaining)
            headers[f"x-ratelimit-reset-{name}"] = f"{ceil(each.reset_seconds)}s"
        return headers

    def _tokens(self, path: str, body: Body) -> float:
        """Return the tokens to reserve for a request: those of its prompt and its longest answer.

        An answer without a limit counts with the length that is expected for its key and path.
        """
        prompt, answer = self._chooser.expected_tokens(body.prompt)
        if path not in _GENERATING_PATHS:
            answer = 0.0
        elif body.answer_tokens is not None:
            answer = body.answer_tokens
        most_prompt = PROMPT_MARGIN * prompt + TEMPLATE_TOKENS if prompt and body.is_text else 0.0
        return most_prompt + answer * body.answers

    def _refuse(self, client: Client, exceeded: Exceeded, tokens: float) -> Refusal:
        self._metrics.note_limited(client.name, exceeded.name)
        headers = self.headers(client)
        if exceeded.seconds == inf:
            # The header tells OpenAI's clients that a retry cannot help.
            headers["x-should-retry"] = "false"
            text = _NEVER[exceeded.name].format(limit=exceeded.limit, tokens=ceil(tokens))
        else:
            seconds = max(ceil(exceeded.seconds), 1)
            headers["retry-after"] = str(seconds)
            text = _LATER[exceeded.name].format(limit=exceeded.limit, seconds=seconds)
        return Refusal(429, text, "rate_limited", headers)
