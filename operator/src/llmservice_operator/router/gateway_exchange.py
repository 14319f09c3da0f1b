"""Follows one request through the Envoy of a Gateway, which sends all of it to the picker.

The protocol is the Endpoint Picker Protocol of the Gateway API Inference Extension. The picker
keeps a request's body until it has chosen a replica, and then passes it on. It passes each part of
the answer on as it comes.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.router.admission import Refusal
from llmservice_operator.router.bodies import Body
from llmservice_operator.router.envoy_names import BODY_SECONDS, SEEN_BODY_BYTES
from llmservice_operator.router.exchange import TOO_MANY_BODIES, Exchange
from llmservice_operator.router.gateway_messages import (
    CONTINUE_REQUEST_TRAILERS,
    CONTINUE_RESPONSE_BODY,
    CONTINUE_RESPONSE_TRAILERS,
    choose_destination,
    pass_request_body,
    pass_response_body,
    refuse_in_full,
    served_of,
    subset_of,
)
from llmservice_operator.router.held import HeldRequests, TooManyHeld
from llmservice_operator.router.messages import CONTINUE_HEADERS

PART_BYTES: Final = 64 * 1024
"""Size up to which parts of a body are joined, so that a request keeps few of them."""

_NOT_IN_SUBSET = Refusal(
    503,
    "no replica that the gateway allows is ready; send the request again later",
    "not_in_subset",
)
_LONGER_THAN_ANNOUNCED = Refusal(
    400, "the body is longer than its content-length; send the right length", "too_large"
)
_TOO_SLOW = Refusal(
    408, f"the body did not arrive within {BODY_SECONDS} s; send it faster", "too_slow"
)


@dataclass
class GatewayExchange(Exchange):
    """One request."""

    max_body_bytes: int = 2**40
    """Maximum size of a request's body."""
    returns_body: bool = True
    """Whether the body goes back to Envoy. Another picker that asks for the choice has it."""
    kept: HeldRequests = field(default_factory=lambda: HeldRequests(1, 2**40))
    """Bounds the bodies of all requests that wait for the choice."""
    _kept: list[bytearray] = field(default_factory=list)
    """Parts of the body that wait for the choice."""
    _keeping: ExitStack = field(default_factory=ExitStack)
    """Open while `kept` counts the body."""
    _count: Callable[[int], None] = lambda _: None
    """Counts further bytes of the body."""
    _body_until: float | None = None
    """Time of the event loop's clock until which the body must arrive; None without a body."""
    _received: int = 0
    """Bytes of the body that have arrived."""
    _passes_body: bool = False
    """Whether the replica is chosen, so that the rest of the body passes through."""
    _returns_response: bool = True
    """Whether Envoy expects each part of the answer back."""

    async def run(self) -> None:
        """Answer Envoy's messages until the request ends."""
        try:
            while (message := await self._read()) is not EOF:
                refusal = _TOO_SLOW if message is None else await self._on_message(message)
                if refusal is not None:
                    self._outcome = refusal.outcome
                    await self.stream.write(refuse_in_full(refusal))
                    return
        except TooManyHeld:
            self._outcome = TOO_MANY_BODIES.outcome
            await self.stream.write(refuse_in_full(TOO_MANY_BODIES))
        finally:
            self._keeping.close()
            self._end()

    @property
    def _is_counted(self) -> bool:
        return self.returns_body  # another picker that asks counts its request itself

    async def _read(self) -> Any:
        """Return the next message; None if the body has not arrived in time."""
        if self._body_until is None or self._passes_body:
            return await self.stream.read()
        try:
            async with asyncio.timeout_at(self._body_until):
                return await self.stream.read()
        except TimeoutError:
            return None

    async def _on_message(self, message: pb.ProcessingRequest) -> Refusal | None:
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            return await self._begin(message)
        if kind == "request_body":
            return await self._take_body(message.request_body)
        if kind == "request_trailers":
            refusal = None if self._passes_body else await self._pass_kept(is_last=False)
            if refusal is None:
                await self.stream.write(CONTINUE_REQUEST_TRAILERS)
            return refusal
        if kind == "response_headers":
            await self.stream.write(self._on_response(message))
        elif kind == "response_body":
            await self._pass_answer(message.response_body)
        elif kind == "response_trailers":
            await self.stream.write(CONTINUE_RESPONSE_TRAILERS)
        return None

    async def _begin(self, message: pb.ProcessingRequest) -> Refusal | None:
        mode = message.protocol_config.response_body_mode
        if message.HasField("protocol_config"):
            self._returns_response = mode == ProcessingMode.FULL_DUPLEX_STREAMED
        allowed = subset_of(message)
        if allowed is not None:
            self._among = self.parts.chooser.names_of(allowed)
            if not self._among:
                return _NOT_IN_SUBSET
        answer = await self._on_headers(message.request_headers)
        if isinstance(answer, Refusal):
            return answer
        if (self._announced() or 0) > self.max_body_bytes:
            return self._too_large()
        if answer is CONTINUE_HEADERS:
            # The answer to these headers follows when the replica is chosen by the body.
            self._count = self._keeping.enter_context(self.kept.holding(0))
            self._body_until = asyncio.get_running_loop().time() + BODY_SECONDS
        else:
            await self.stream.write(answer)
        return None

    async def _take_body(self, part: pb.HttpBody) -> Refusal | None:
        self._received += len(part.body)
        if self._received > self.max_body_bytes:
            return self._too_large()
        announced = self._announced()
        if announced is not None and self._received > announced:
            return _LONGER_THAN_ANNOUNCED
        if self._passes_body:
            await self.stream.write(pass_request_body(part.body, is_last=part.end_of_stream))
            return None
        self._count(len(part.body))
        if self._kept and len(self._kept[-1]) + len(part.body) <= PART_BYTES:
            self._kept[-1] += part.body
        else:
            self._kept.append(bytearray(part.body))
        if part.end_of_stream or self._received >= SEEN_BODY_BYTES:
            return await self._pass_kept(is_last=part.end_of_stream)
        return None

    async def _pass_kept(self, *, is_last: bool) -> Refusal | None:
        """Choose the replica by the body that has arrived, and pass this body on."""
        answer = await self._on_body(b"".join(self._kept))
        if isinstance(answer, Refusal):
            return answer
        await self.stream.write(answer)
        parts, self._kept, self._passes_body = self._kept, [], True
        for number, each in enumerate(parts if self.returns_body else (), start=1):
            is_end = is_last and number == len(parts)
            await self.stream.write(pass_request_body(bytes(each), is_last=is_end))
        self._keeping.close()
        self._give_back()
        return None

    def _on_response(self, message: pb.ProcessingRequest) -> bytes:
        self._give_back()
        # A Gateway that does not tell the address has probably sent no retry.
        first = "" if self._chosen is None else self._chosen.addresses[0]
        return self._begin_answer(message.response_headers, served_of(message) or first)

    def _choice(
        self, addresses: Sequence[str], body: Body, held_seconds: float, *, has_body: bool
    ) -> bytes:
        # The Envoy of the Gateway decides itself whether it retries.
        return choose_destination(addresses, held_seconds)

    async def _pass_answer(self, part: pb.HttpBody) -> None:
        if self._returns_response:
            await self.stream.write(pass_response_body(part.body, is_last=part.end_of_stream))
        else:
            await self.stream.write(CONTINUE_RESPONSE_BODY)

    def _too_large(self) -> Refusal:
        size = self.max_body_bytes
        said = f"the body is larger than {size} bytes; send a shorter one"
        return Refusal(413, said, "too_large")
