"""Serves the Envoys of Gateways. One picker of the service answers, whichever of them is asked.

A Gateway asks any router pod, because its endpoint picker is a Service object. A picker that is not
the first one asks the first one to choose the replica. If that one does not answer, it chooses
itself.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.router.admission import Refusal
from llmservice_operator.router.bodies import Body
from llmservice_operator.router.envoy_names import SEEN_BODY_BYTES
from llmservice_operator.router.exchange import Parts
from llmservice_operator.router.gateway_exchange import GatewayExchange
from llmservice_operator.router.gateway_messages import refusal_of
from llmservice_operator.router.held import HeldRequests

logger = logging.getLogger(__name__)

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD: Final = "Process"
CHOICE_SERVICE: Final = "llmservice.router.v1.Gateway"
"""Service, at the port for other pickers, that chooses the replica of a request of theirs."""

ANSWER_SECONDS: Final = 2.0
"""Time in seconds in which the first picker must answer, or say that it holds the request."""

CERTIFICATE_DAYS: Final = 3650


@dataclass(frozen=True)
class First:
    """The picker that answers, in another router pod."""

    channel: Any
    """Connection to it."""
    asks: set[asyncio.Timeout] = field(default_factory=set)
    """Time limits of the requests about which it is asked."""

    def call(self) -> Any:
        return self.channel.stream_stream(f"/{CHOICE_SERVICE}/{METHOD}")()

    def lose(self) -> None:
        """Wait no longer for answers."""
        for each in self.asks:
            if not each.expired():
                each.reschedule(asyncio.get_running_loop().time())


@dataclass
class FollowingExchange(GatewayExchange):
    """One request, whose replica the first picker chooses.

    Only the messages that the choice needs go to that picker, so its end cuts no answer.
    """

    first: First | None = None
    _call: Any = None
    _telling: asyncio.Future[Any] | None = None
    _first_message: pb.ProcessingRequest | None = None
    """Message with the request's headers."""
    _asked_seconds: float = 0.0
    """Time in seconds for which the first picker was asked in vain."""

    async def _begin(self, message: pb.ProcessingRequest) -> Refusal | None:
        self._first_message = message
        return await super()._begin(message)

    async def _choose(self, body: Body, *, has_body: bool) -> bytes | Refusal:
        # The first picker has been asked already about a request with a body.
        answer = None if has_body else await self._ask()
        if answer is not None:
            return answer
        return super()._reserve(body) or await super()._choose(body, has_body=has_body)

    def _reserve(self, body: Body) -> Refusal | None:
        # The picker that chooses the replica reserves what the client may use.
        return None

    async def _on_body(self, content: bytes) -> bytes | Refusal:
        body = pb.ProcessingRequest()
        body.request_body.body = content[:SEEN_BODY_BYTES]
        body.request_body.end_of_stream = True
        if len(content) >= SEEN_BODY_BYTES:
            self._give_back()  # as in _on_body of the first picker
        answer = await self._ask(body)
        return await super()._on_body(content) if answer is None else answer

    async def _ask(self, *more: pb.ProcessingRequest) -> bytes | Refusal | None:
        """Return the answer of the first picker; None if it does not answer."""
        assert self.first is not None
        assert self._first_message is not None
        call, asks, loop = self.first.call(), self.first.asks, asyncio.get_running_loop()
        self._call, begun = call, loop.time()
        limit = asyncio.timeout(ANSWER_SECONDS)
        try:
            async with limit:
                asks.add(limit)
                for message in (self._first_message, *more):
                    await call.write(message.SerializeToString())
                while (answer := await call.read()) is not EOF:
                    parsed = pb.ProcessingResponse.FromString(answer)
                    if parsed.HasField("override_message_timeout"):
                        # The first picker holds the request, and answers within this time.
                        longest = parsed.override_message_timeout.ToTimedelta().total_seconds()
                        limit.reschedule(loop.time() + longest)
                        await self.stream.write(answer)
                        continue
                    if parsed.HasField("immediate_response"):
                        return refusal_of(parsed)
                    self._outcome = "sent"
                    return bytes(answer)
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
            logger.warning("the first picker does not answer: %s", type(error).__name__)
        finally:
            asks.discard(limit)
        call.cancel()
        self._call, self._asked_seconds = None, loop.time() - begun
        return None

    def _held_before(self) -> float:
        # The first picker may have held the request before it ended.
        return self._asked_seconds

    def _on_response(self, message: pb.ProcessingRequest) -> bytes:
        if self._call is not None:
            self._tell(message)
        return super()._on_response(message)

    def _tell(self, message: pb.ProcessingRequest) -> None:
        """Tell the first picker that the answer has begun, without waiting for it."""
        self._telling = asyncio.ensure_future(self._call.write(message.SerializeToString()))
        self._telling.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _end(self) -> None:
        if self._call is not None:
            self._call.cancel()
        super()._end()


@dataclass
class GatewayServer:
    """Answers the calls of Gateways, and the questions of other pickers about their calls."""

    parts: Parts
    max_body_bytes: int
    find_first: Callable[[], str | None]
    """Returns the address of the picker that answers; None for this one."""
    options: tuple[tuple[str, int], ...]
    """Options of the channels to other pickers."""
    kept: HeldRequests
    """Bounds the bodies that wait for a choice."""
    _firsts: dict[str, First] = field(default_factory=dict)
    """Other pickers that have been asked, by their addresses."""

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of the port for Gateways."""

        async def process(_: object, context: Any) -> None:
            address = self.find_first()
            if address is None:
                exchange = GatewayExchange(
                    self.parts,
                    context,
                    is_forwarded=False,
                    max_body_bytes=self.max_body_bytes,
                    kept=self.kept,
                )
            else:
                exchange = FollowingExchange(
                    self.parts,
                    context,
                    is_forwarded=False,
                    max_body_bytes=self.max_body_bytes,
                    kept=self.kept,
                    first=self._first_at(address),
                )
            await exchange.run()

        return _handler_of(SERVICE, process)

    def choice_handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of the port for other pickers."""

        async def choose(_: object, context: Any) -> None:
            exchange = GatewayExchange(
                self.parts,
                context,
                is_forwarded=False,
                max_body_bytes=self.max_body_bytes,
                returns_body=False,
                kept=self.kept,
            )
            await exchange.run()

        return _handler_of(CHOICE_SERVICE, choose)

    async def close(self) -> None:
        """Close the connections to other pickers."""
        for first in self._firsts.values():
            await first.channel.close()

    def lose(self, address: str) -> None:
        """Wait no longer for the answers of the picker at an address."""
        if address in self._firsts:
            self._firsts[address].lose()

    def _first_at(self, address: str) -> First:
        if address not in self._firsts:
            # The addresses are those of router pods, of which there are few.
            channel = grpc.aio.insecure_channel(address, options=self.options)
            self._firsts[address] = First(channel)
        return self._firsts[address]


def _handler_of(service: str, answer: Callable[[object, Any], Any]) -> grpc.GenericRpcHandler:
    method = grpc.stream_stream_rpc_method_handler(answer, pb.ProcessingRequest.FromString)
    return grpc.method_handlers_generic_handler(service, {METHOD: method})


def make_credentials(name: str) -> grpc.ServerCredentials:
    """Return a new key and its certificate, which no authority has signed.

    Gateways encrypt the connection to an endpoint picker, and do not check its certificate.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return grpc.ssl_server_credentials([(encoded, pem)])
