"""The process that chooses the replica of each request: a server of Envoy's protocol ext_proc."""

import asyncio
import logging
import signal
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import grpc
import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.api.router_messages import (
    MOST_REFUSED,
    HoldCounts,
    RefusedRequest,
    RouterReport,
)
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.router import replica_view
from llmservice_operator.router.admission import Admission, ApiKeys
from llmservice_operator.router.bodies import BodyReader
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.client_limits import ClientLimits, limiter_of
from llmservice_operator.router.deadly import DeadlyRequests
from llmservice_operator.router.envoy_names import (
    FORWARDED_METADATA,
    MAX_CONNECTIONS,
    SEEN_BODY_BYTES,
)
from llmservice_operator.router.exchange import Exchange, Limits, Parts
from llmservice_operator.router.followers import Followers
from llmservice_operator.router.following import Following
from llmservice_operator.router.grants import Grants
from llmservice_operator.router.held import HeldRequests
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router.picker_status import PickerStatus, serve_held, serve_status
from llmservice_operator.router_settings import ROUTER_PREFIX, RouterSettings
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.router import Router
from llmservice_operator.scaling.step_model import StepModel

if TYPE_CHECKING:  # most pickers do not serve Gateways
    from llmservice_operator.router.gateway_server import GatewayServer

logger = logging.getLogger(__name__)

SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"

_LIVENESS: Final = b"\x0a\x08liveness"
"""HealthCheckRequest about the process, whatever it knows. Gateways may send it."""

# HealthCheckResponse with the field `status`.
_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"

_SWITCH_SECONDS: Final = 0.001
"""Time in seconds after which a thread that reads a long body lets the event loop continue."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", SEEN_BODY_BYTES + 256 * 1024),
    # With the default, a second picker on the same port would get half of the requests.
    ("grpc.so_reuseport", 0),
    # gRPC measures the bandwidth with pings, and each of them wakes the picker and Envoy. Without
    # the measurement, the window must have room for a whole body.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", SEEN_BODY_BYTES),
    # Without these options, gRPC would find Envoy's pings too frequent, and end every call.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


def run_picker(settings: RouterSettings) -> int:
    """Serve until SIGTERM, or until the supervisor closes the standard input."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Picker(settings).run())


class Picker:
    """The server, with the replicas that the supervisor reports to it."""

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._started = time.time()
        router = Router(StepModel(**settings.step_prior.model_dump()))
        if settings.ttft_limit_seconds is not None:
            router.ttft_seconds = settings.ttft_limit_seconds
        holding = Holding(router, settings.max_held_requests, settings.max_held_bytes)
        chooser = Chooser(holding, settings.policy)
        identity = f"{settings.namespace}/{settings.service}"
        self._following = Following(chooser, identity)
        self._gateway_server: GatewayServer | None = None
        self._followers = Followers(chooser, identity, lambda: self._is_ready)
        chooser.tell = self._followers.tell
        deadly, metrics, limits = DeadlyRequests(), PickerMetrics(), None
        if settings.client_limits is not None:
            chooser.limiter = limiter_of(settings.client_limits)
            chooser.limiter.tell = self._followers.tell
            limits = ClientLimits(chooser.limiter, chooser, metrics)
        metrics.watch("held_requests", "Requests that the picker holds", lambda: len(holding))
        metrics.watch(
            "refused_digests",
            "Requests that are refused at present because they ended two replicas",
            lambda: len(deadly.refused(time.monotonic())),
        )
        self._parts = Parts(
            chooser=chooser,
            admission=Admission(
                None if (keys := settings.api_keys_directory) is None else ApiKeys(keys)
            ),
            grants=Grants(),
            deadly=deadly,
            bodies=BodyReader(),
            limits=Limits(
                settings.hold_timeout_seconds,
                settings.heartbeat_seconds,
                holds_without_body=not settings.scales_to_zero,
            ),
            metrics=metrics,
            # No Gateway reaches the forwarder.
            forwarder=(None if settings.gateway_port else f"127.0.0.1:{settings.forwarder_port}"),
            client_limits=limits,
        )

    async def run(self) -> int:
        """Serve until the end. Raises InvalidSettings if a port is taken."""
        server, port = grpc.aio.server(options=_OPTIONS), self._settings.picker_port
        server.add_generic_rpc_handlers(
            (self._process_handler(), self._health_handler(), self._followers.handler())
        )
        gateways = await self._serve_gateways()
        if self._gateway_server is not None:
            server.add_generic_rpc_handlers((self._gateway_server.choice_handler(),))
        try:
            # A pod has either IPv4 or IPv6, and this address accepts both.
            server.add_insecure_port(f"[::]:{port}")
        except RuntimeError as error:
            raise InvalidSettings(
                f"port {port} cannot be served; set {ROUTER_PREFIX}PICKER_PORT to a free one"
            ) from error
        await server.start()
        folder = self._settings.run_directory
        status = await serve_status(self._status, folder)
        held = await serve_held(self._parts.chooser.holds.wait, folder)
        loop, listening = asyncio.get_running_loop(), asyncio.ensure_future(self._listen())
        ending = asyncio.ensure_future(asyncio.Event().wait())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ending.cancel)
        try:
            await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()  # raises the error that has ended it
            if gateways is not None and not listening.done():
                # The messages of a request pass through the picker until its answer ends.
                await gateways.stop(grace=self._settings.drain_timeout_seconds)
        finally:
            listening.cancel()
            ending.cancel()
            status.close()
            held.close()
            await self._following.close()
            if gateways is not None:
                await gateways.stop(grace=None)
            if self._gateway_server is not None:
                await self._gateway_server.close()
            await server.stop(grace=None)
        return 0

    async def _serve_gateways(self) -> grpc.aio.Server | None:
        """Serve the Envoys of Gateways at a port of their own. Raises InvalidSettings."""
        settings, port = self._settings, self._settings.gateway_port
        if port is None:
            return None
        # The import is local, because most pickers do not need these libraries.
        from llmservice_operator.router.gateway_server import GatewayServer, make_credentials

        self._gateway_server = GatewayServer(
            self._parts,
            settings.max_body_bytes,
            self._first_picker,
            _OPTIONS,
            HeldRequests(MAX_CONNECTIONS, settings.max_held_bytes),
        )
        self._following.on_lost = self._gateway_server.lose
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONNECTIONS)
        server.add_generic_rpc_handlers((self._gateway_server.handler(), self._health_handler()))
        try:
            server.add_secure_port(f"[::]:{port}", make_credentials(settings.service))
        except RuntimeError as error:
            raise InvalidSettings(
                f"port {port} cannot be served; set {ROUTER_PREFIX}GATEWAY_PORT to a free one"
            ) from error
        await server.start()
        return server

    def _first_picker(self) -> str | None:
        """Return the address of the picker that answers all Gateways; None for this one.

        It is the first one, by address, of those that know the replicas.
        """
        settings = self._settings
        host = settings.pod_address
        own = f"[{host}]" if ":" in host else host
        own = f"{own}:{settings.picker_port}"
        known = {*self._following.followed, *((own,) if self._is_ready else ())}
        first = min(known, default=own)
        return None if first == own else first

    def _status(self) -> PickerStatus:
        parts = self._parts
        counts = parts.chooser.holding.counts
        refused = parts.deadly.refused(parts.chooser.clock())[-MOST_REFUSED:]
        return PickerStatus(
            metrics=parts.metrics.render().decode(),
            report=RouterReport(
                refused_requests=tuple(
                    RefusedRequest(digest=digest.hex(), seconds_left=left)
                    for digest, left in refused
                ),
                held_requests=len(parts.chooser.holding),
                hold_counts=HoldCounts(started=self._started, **asdict(counts)),
            ),
        )

    @property
    def _is_ready(self) -> bool:
        """Whether this picker knows the replicas, and as much as the other pickers."""
        return self._parts.chooser.is_informed and self._following.is_ready

    async def _listen(self) -> None:
        """Read the supervisor's lines until it closes the standard input."""
        reader = asyncio.StreamReader(limit=replica_view.LONGEST_LINE)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            try:
                view = replica_view.decode(line)
            except ValueError as error:
                logger.error("a line of the supervisor is not valid: %s", error)
                continue
            self._parts.chooser.update(view.replicas, view.refusal)
            self._followers.admit(view.other_pickers)
            self._following.update(view.other_pickers)

    def _process_handler(self) -> grpc.GenericRpcHandler:
        async def process(_: object, context: Any) -> None:
            is_forwarded = any(
                key == FORWARDED_METADATA for key, _ in context.invocation_metadata()
            )
            await Exchange(self._parts, context, is_forwarded).run()

        method = grpc.stream_stream_rpc_method_handler(process, pb.ProcessingRequest.FromString)
        return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})

    def _health_handler(self) -> grpc.GenericRpcHandler:
        async def check(request: bytes, context: Any) -> bytes:
            return _SERVING if self._is_ready or request == _LIVENESS else _NOT_SERVING

        method = grpc.unary_unary_rpc_method_handler(check)
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": method})
