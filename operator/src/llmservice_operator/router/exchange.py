"""Follows one request through Envoy: admits it, chooses its replica, and notes its end."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol
from urllib.parse import unquote

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.names import HELD_HEADER, STORED_HEADER
from llmservice_operator.router.admission import NO_CLIENT, Admission, Client, Refusal, is_open
from llmservice_operator.router.bodies import NO_BODY, Body, BodyReader
from llmservice_operator.router.chooser import Chooser, Chosen
from llmservice_operator.router.client_limits import ClientLimits
from llmservice_operator.router.deadly import DeadlyRequests
from llmservice_operator.router.envoy_names import SEEN_BODY_BYTES, SMALL_BODY_BYTES, STORED_PATH
from llmservice_operator.router.grants import WAIT_SECONDS, Grants
from llmservice_operator.router.held import NoReplicaComes
from llmservice_operator.router.messages import (
    CONTINUE_HEADERS,
    CONTINUE_RESPONSE,
    add_headers,
    choose,
    refuse,
    wait,
)
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.routing.answers import source_of
from llmservice_operator.routing.holding import TooManyHeld
from llmservice_operator.routing.settlements import Reservation

logger = logging.getLogger(__name__)

MARGIN_SECONDS: Final = 5.0
"""Time in seconds that Envoy waits for a message in addition to the picker's own limit."""

_FILTER: Final = "envoy.filters.http.ext_proc"
_ENDED_WITH_REQUEST: Final = 0x40
"""Bit in Envoy's flags of a response: the replica closed the connection before it answered."""

TOO_MANY_BODIES: Final = Refusal(
    503,
    "too many request bodies arrive at the same time; send the request again later",
    "too_many_bodies",
)
_TOO_MANY_HELD: Final = Refusal(
    503,
    "no replica is available, and too many requests wait already; send it again later",
    "too_many_held",
)
_NO_REPLICA: Final = Refusal(
    503, "no replica became available in time; send the request again later", "no_replica"
)
_NO_REPLICA_FOR_NO_BODY: Final = Refusal(
    503,
    "no replica is available, and a request without a body starts none; send it again later",
    _NO_REPLICA.outcome,
)
_DEADLY: Final = Refusal(
    502,
    "this request ended two replicas, so it is refused for 10 minutes; change it before you send "
    "it again",
    "refused_digest",
)


class Stream(Protocol):
    """The side of a gRPC call that the picker uses."""

    async def read(self) -> Any: ...

    async def write(self, message: bytes) -> None: ...


@dataclass(frozen=True)
class Limits:
    """Limits of requests that wait for a replica."""

    hold_seconds: float
    heartbeat_seconds: float
    """Time in seconds after which a waiting request for a stream goes to the forwarder."""
    holds_without_body: bool = True
    """Whether requests without a body wait. If the service scales to zero, they would start a
    replica whose engine they do not use, so that it would end and start again and again."""


@dataclass(frozen=True)
class Parts:
    """Objects that all requests share."""

    chooser: Chooser
    admission: Admission
    grants: Grants
    deadly: DeadlyRequests
    bodies: BodyReader
    limits: Limits
    metrics: PickerMetrics
    forwarder: str | None
    """Address and port of the forwarder, which holds streams; None if there is none."""
    client_limits: ClientLimits | None = None
    """The limits of clients; None if they have none."""


@dataclass
class Exchange:
    """One request."""

    parts: Parts
    stream: Stream
    is_forwarded: bool
    """Whether the forwarder sent the request, so that it must not return there."""
    _headers: Mapping[str, bytes] = field(default_factory=dict)
    _granted: int = 0
    _chosen: Chosen | None = None
    _outcome: str = "client_left"
    """Outcome for the metrics. A client may leave before there is another one."""
    _is_stream: bool = False
    _client: Client = NO_CLIENT
    _reserved: Reservation | None = None
    _begun: float | None = None
    """Time at which the answer began."""
    _is_success: bool = False
    _digest: bytes = b""
    _among: frozenset[str] | None = None
    """Names of the only replicas that may be chosen; None if all may."""

    async def run(self) -> None:
        """Answer Envoy's messages until the request ends."""
        try:
            # `async for` would keep each message, including the body, until the next one arrives.
            while (message := await self.stream.read()) is not EOF:
                kind = message.WhichOneof("request")
                if kind == "request_headers":
                    answer = await self._on_headers(message.request_headers)
                elif kind == "request_body":
                    if not self._headers:
                        self._headers = _headers_of_attributes(message)
                    body = message.request_body.body
                    message = None
                    answer = await self._on_body(body)
                elif kind == "response_headers":
                    answer = self._on_response(message)
                else:
                    return  # The end of the call is the answer to the end of the response.
                if isinstance(answer, Refusal):
                    self._outcome = answer.outcome
                    await self.stream.write(refuse(answer))
                    return
                await self.stream.write(answer)
        finally:
            self._end()

    def _end(self) -> None:
        self._give_back()
        self._end_reservation()
        if self._is_counted:
            self.parts.metrics.note_outcome(self._outcome)
        if self._chosen is not None:
            self.parts.chooser.ended(self._chosen)

    @property
    def _is_counted(self) -> bool:
        """Whether the request counts as one of a client."""
        return not self.is_forwarded  # the forwarder's clients have been counted already

    async def _on_headers(self, message: pb.HttpHeaders) -> bytes | Refusal:
        self._headers = {each.key: each.raw_value for each in message.headers.headers}
        if refusal := self._refusal():
            return refusal
        if message.end_of_stream:
            return self._reserve(NO_BODY) or await self._choose(NO_BODY, has_body=False)
        if self._limits is not None and (refusal := self._limits.refusal(self._client)):
            return refusal
        announced = self._announced()
        size = SEEN_BODY_BYTES if announced is None else min(announced, SEEN_BODY_BYTES)
        if size > SMALL_BODY_BYTES:
            if self.parts.grants.must_wait(size):
                await self.stream.write(wait(WAIT_SECONDS + MARGIN_SECONDS))
            if not await self.parts.grants.take(size):
                return TOO_MANY_BODIES
            self._granted = size
        return CONTINUE_HEADERS

    async def _on_body(self, content: bytes) -> bytes | Refusal:
        # The headers of a request with a small body arrive together with the body.
        if ":method" not in self._headers and (refusal := self._refusal()):
            return refusal
        body = await self.parts.bodies.read(content, self._announced())
        if body.is_stream:
            # The length of another answer is not seen, because it begins only when it is complete.
            source = source_of(self._client.digest, _path(self._headers))
            body = body._replace(prompt=replace(body.prompt, source=source))
        self._digest, self._is_stream = body.digest, body.is_stream
        if body.size >= SEEN_BODY_BYTES:
            # Envoy has passed the body on, and keeps no copy for a retry.
            self._give_back()
        if self.parts.deadly.seconds_refused(body.digest, self.parts.chooser.clock()):
            return _DEADLY
        return self._reserve(body) or await self._choose(body, has_body=True)

    def _refusal(self) -> Refusal | None:
        admitted = self.parts.admission.admit(self._headers)
        if isinstance(admitted, Refusal):
            return admitted
        self._client = admitted
        return None

    @property
    def _limits(self) -> ClientLimits | None:
        """The limits that apply to the request. One from the forwarder was admitted before."""
        is_limited = bool(self._client.name) and not self.is_forwarded
        return self.parts.client_limits if is_limited else None

    def _reserve(self, body: Body) -> Refusal | None:
        if self._limits is None:
            return None
        admitted = self._limits.admit(self._client, _path(self._headers), body)
        if isinstance(admitted, Refusal):
            return admitted
        self._reserved = admitted
        return None

    def _end_reservation(self) -> None:
        if self._limits is None or self._reserved is None:
            return
        if self._chosen is not None:
            # An answer that is no stream begins only when it is complete.
            is_whole = self._begun is not None and not (self._is_stream and self._is_success)
            self._limits.end(self._reserved, self._chosen, self._begun, is_whole=is_whole)
        elif self._outcome == "forwarded":
            self._limits.end_forwarded(self._reserved)
        else:
            self._limits.cancel(self._reserved)

    async def _choose(self, body: Body, *, has_body: bool) -> bytes | Refusal:
        """Choose addresses for the request, and return the message with them."""
        chooser, begun = self.parts.chooser, self.parts.chooser.clock()
        if identifier := _stored_response(self._headers) or body.previous:
            self._chosen = chooser.choose_owner(identifier, body.prompt, self._among)
        if self._chosen is None and not has_body:
            # Without a body there is no prompt, so the request waits only while no replica exists.
            self._chosen = chooser.choose_now(body.prompt, self._among)
            if self._chosen is None and (refusal := self._refusal_to_wait()):
                return refusal
        if self._chosen is None:
            try:
                self._chosen = await self._choose_or_wait(body)
            except TooManyHeld:
                return _TOO_MANY_HELD
            except NoReplicaComes as error:
                return Refusal(503, str(error), _NO_REPLICA.outcome)
        held = self._held_before() + chooser.clock() - begun
        forwarder = None if self.is_forwarded else self.parts.forwarder
        if self._chosen is None:
            if forwarder is None or not body.is_stream:
                self.parts.metrics.note_held(held)
                return _NO_REPLICA
            addresses, self._outcome = [forwarder], "forwarded"
        else:
            self._outcome = "sent"
            if self._limits is not None and self._reserved is not None:
                self._limits.sent(self._reserved, self._chosen)
            self.parts.metrics.note_pick(self._chosen.pick, self._chosen.reason)
            if self.is_forwarded or self._chosen.reason == "held":
                self.parts.metrics.note_held(held)
            addresses = list(self._chosen.addresses)
            if len(addresses) == 1 and forwarder is not None:
                addresses.append(forwarder)
        return self._choice(addresses, body, held, has_body=has_body)

    def _refusal_to_wait(self) -> Refusal | None:
        """Return the answer to a request without a body while no replica exists.

        None if the request waits.
        """
        if is_open(self._headers):
            return _NO_REPLICA
        return None if self.parts.limits.holds_without_body else _NO_REPLICA_FOR_NO_BODY

    def _choice(
        self, addresses: Sequence[str], body: Body, held_seconds: float, *, has_body: bool
    ) -> bytes:
        """Return the message with the chosen addresses."""
        return choose(
            addresses,
            has_body=has_body,
            has_second_attempt=self._has_second_attempt(body),
            held_seconds=held_seconds,
        )

    def _has_second_attempt(self, body: Body) -> bool:
        """Return whether another replica gets the request if the first one refuses it.

        A refusal of the only attempt counts as demand, because no replica has served the request.
        Envoy keeps a body for a retry only if the body is smaller than its buffer.
        """
        replicas = () if self._chosen is None else self._chosen.addresses
        is_kept = body.size < SEEN_BODY_BYTES
        return len(replicas) > 1 and is_kept and not self.is_forwarded

    async def _choose_or_wait(self, body: Body) -> Chosen | None:
        limits = self.parts.limits
        seconds = max(limits.hold_seconds - self._held_before(), 0.0)
        is_direct_stream = body.is_stream and not self.is_forwarded
        moves = is_direct_stream and self.parts.forwarder is not None
        waits_elsewhere = moves and limits.heartbeat_seconds < seconds
        if waits_elsewhere:
            seconds = limits.heartbeat_seconds

        async def tell() -> None:
            await self.stream.write(wait(seconds + MARGIN_SECONDS))

        return await self.parts.chooser.choose(
            body.prompt,
            body.size,
            self._client.digest,
            seconds,
            tell,
            self._among,
            waits_elsewhere=waits_elsewhere,
        )

    def _on_response(self, message: pb.ProcessingRequest) -> bytes:
        self._give_back()
        attributes = message.attributes[_FILTER].fields
        address = attributes["upstream.address"].string_value
        answer = self._begin_answer(message.response_headers, address)
        flags = int(attributes["response.flags"].number_value)
        if flags & _ENDED_WITH_REQUEST and self._digest:
            tries = max(int(attributes["upstream.request_attempt_count"].number_value), 1)
            if self.parts.deadly.add(self._digest, tries, self.parts.chooser.clock()):
                self.parts.metrics.note_refused_digest()
                logger.warning(
                    "two replicas ended with the request %s: it is refused for 10 minutes",
                    self._digest.hex(),
                )
        return answer

    def _begin_answer(self, response: pb.HttpHeaders, address: str) -> bytes:
        """Note that the replica at an address has begun its answer, and return Envoy's answer."""
        self._begun = self.parts.chooser.clock()
        self._note_response(response, address)
        if self._limits is None:
            return CONTINUE_RESPONSE
        if self._reserved is not None and self._chosen is not None:
            self._limits.answered(self._reserved, self._chosen, address)
        return add_headers(self._limits.headers(self._client))

    def _note_response(self, response: pb.HttpHeaders, address: str) -> None:
        if self._chosen is not None:
            self._note_first_token(self._chosen, address)
        for header in response.headers.headers:
            if header.key == ":status":
                self._is_success = header.raw_value == b"200"
            elif header.key == STORED_HEADER:
                self.parts.chooser.note_owner(header.raw_value.decode("latin-1"), address)

    def _note_first_token(self, chosen: Chosen, address: str) -> None:
        chooser, metrics = self.parts.chooser, self.parts.metrics
        chooser.started(chosen, address)
        if address in chosen.addresses[1:]:
            metrics.note_retry()
        elif address == chosen.addresses[0] and self._is_stream:
            # Other answers begin only when they are complete.
            metrics.note_first_token(chosen.pick, chooser.clock())

    def _held_before(self) -> float:
        """Return the total seconds for which the forwarder and an earlier picker held the request.

        The time is in HELD_HEADER, which Envoy removes from the requests of clients.
        """
        return int(self._headers.get(HELD_HEADER, b"0")) / 1000 if self.is_forwarded else 0.0

    def _announced(self) -> int | None:
        length = self._headers.get("content-length", b"")
        return int(length) if length.isdigit() else None

    def _give_back(self) -> None:
        if self._granted:
            self.parts.grants.give_back(self._granted)
            self._granted = 0


def _stored_response(headers: Mapping[str, bytes]) -> str:
    """Return the identifier of the stored response that a path names; empty if it names none."""
    path = _path(headers)
    if not path.startswith(STORED_PATH):
        return ""
    return unquote(path[len(STORED_PATH) :].partition("/")[0])


def _path(headers: Mapping[str, bytes]) -> str:
    """Return the path of a request without its query."""
    return headers.get(":path", b"").partition(b"?")[0].decode("latin-1")


def _headers_of_attributes(message: pb.ProcessingRequest) -> Mapping[str, bytes]:
    """Return the headers that Envoy sends as attributes of the first message."""
    return dict(_attribute_headers(message.attributes[_FILTER].fields))


def _attribute_headers(fields: Mapping[str, Any]) -> Iterable[tuple[str, bytes]]:
    for name in (":path", "authorization", "x-api-key", HELD_HEADER):
        attribute = f"request.headers['{name}']"
        if attribute in fields:
            yield name, fields[attribute].string_value.encode("utf-8", "surrogateescape")
