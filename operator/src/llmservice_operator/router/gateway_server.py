"""Serves the Envoys of Gateways. One picker of the service answers, whichever of them is asked.

A Gateway asks any router pod, because it takes a Service object for its endpoint picker. A picker
that is not the first one passes the messages on to the first one. If that picker does not answer,
it answers itself.
"""

import asyncio
import logging
from collections import deque
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

from llmservice_operator.router.exchange import Parts
from llmservice_operator.router.gateway_exchange import GatewayExchange

logger = logging.getLogger(__name__)

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
METHOD: Final = "Process"
RELAYED_SERVICE: Final = "llmservice.router.v1.Gateway"
"""Service, at the port for other pickers, of the calls that they pass on."""

ANSWER_SECONDS: Final = 2.0
"""Time in seconds in which the connection to the first picker must be made."""

MOST_KEPT_BYTES: Final = 32 * 1024**2
"""Maximum size in bytes of all messages that are kept until the first picker has answered them.
Beyond it, requests are lost if that picker ends before it has answered them."""

CERTIFICATE_DAYS: Final = 3650


class Source:
    """The messages of one call, in their serialized form."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._pending: asyncio.Future[Any] | None = None
        self._again = deque[Any]()

    async def read(self) -> Any:
        """Return the next message, or EOF. A read that is cancelled loses no message."""
        if self._again:
            return self._again.popleft()
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._context.read())
        message = await asyncio.shield(self._pending)
        self._pending = None
        return message

    def repeat(self, messages: list[Any]) -> None:
        """Return these messages first."""
        self._again.extendleft(reversed(messages))


@dataclass(frozen=True)
class _ParsedStream:
    """The stream of an exchange in this process."""

    source: Source
    context: Any

    async def read(self) -> Any:
        message = await self.source.read()
        return EOF if message is EOF else pb.ProcessingRequest.FromString(message)

    async def write(self, message: bytes) -> None:
        await self.context.write(message)


@dataclass
class GatewayServer:
    """Answers the calls of Gateways, and those that other pickers pass on."""

    parts: Parts
    max_body_bytes: int
    first: Callable[[], str | None]
    """Returns the address of the picker that answers; None for this one."""
    options: tuple[tuple[str, int], ...]
    """Options of the channels to other pickers."""
    _channels: dict[str, Any] = field(default_factory=dict)
    _kept_bytes: int = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of the port for Gateways."""
        method = grpc.stream_stream_rpc_method_handler(self._process)
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    def relayed_handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of the port for other pickers."""

        async def answer(_: object, context: Any) -> None:
            await self._answer(Source(context), context)

        method = grpc.stream_stream_rpc_method_handler(answer)
        return grpc.method_handlers_generic_handler(RELAYED_SERVICE, {METHOD: method})

    async def close(self) -> None:
        """Close the connections to other pickers."""
        for channel in self._channels.values():
            await channel.close()

    async def _process(self, _: object, context: Any) -> None:
        source, address = Source(context), self.first()
        if address is not None and await self._relay(address, source, context):
            return
        await self._answer(source, context)

    async def _answer(self, source: Source, context: Any) -> None:
        """Answer a call in this process."""
        stream = _ParsedStream(source, context)
        exchange = GatewayExchange(
            self.parts, stream, is_forwarded=False, max_body_bytes=self.max_body_bytes
        )
        await exchange.run()

    async def _relay(self, address: str, source: Source, context: Any) -> bool:
        """Pass a call on; return False if it has got no answer, so that this picker may answer."""
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=self.options)
        call = self._channels[address].stream_stream(f"/{RELAYED_SERVICE}/{METHOD}")()
        relay = _Relay(self, source, call)
        passing = asyncio.create_task(relay.pass_messages())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await call.wait_for_connection()
            while (answer := await call.read()) is not EOF:
                relay.forget()
                await context.write(answer)
            if (code := await call.code()) is grpc.StatusCode.OK:
                return True
            problem = code.name
        except grpc.aio.AioRpcError as error:
            problem = error.code().name
        except TimeoutError:
            problem = "no connection"
        finally:
            passing.cancel()
            await asyncio.gather(passing, return_exceptions=True)
            call.cancel()
            repeated = relay.forget()
        logger.warning("the picker at %s has not completed a call: %s", address, problem)
        if repeated is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the picker has ended")
            return True
        source.repeat(repeated)
        return False

    def keep(self, size: int) -> bool:
        """Return whether a message of this size may be kept, and count it."""
        if self._kept_bytes + size > MOST_KEPT_BYTES:
            return False
        self._kept_bytes += size
        return True

    def drop(self, size: int) -> None:
        """Count a kept message no more."""
        self._kept_bytes -= size


@dataclass
class _Relay:
    """Passes the messages of one call on, and keeps them until the first answer."""

    server: GatewayServer
    source: Source
    call: Any
    _kept: list[Any] | None = field(default_factory=list)

    async def pass_messages(self) -> None:
        while True:
            message = await self.source.read()
            if self._kept is not None:
                if message is not EOF and not self.server.keep(len(message)):
                    self.forget()
                else:
                    self._kept.append(message)
            if message is EOF:
                await self.call.done_writing()
                return
            await self.call.write(message)

    def forget(self) -> list[Any] | None:
        """Keep no more messages. Return those that were kept; None if some are not kept."""
        kept, self._kept = self._kept, None
        for message in kept or ():
            if message is not EOF:
                self.server.drop(len(message))
        return kept


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
