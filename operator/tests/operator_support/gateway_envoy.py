"""The stream of an Envoy of a Gateway about one request, and what a picker needs to answer it."""

from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.router.admission import Admission, ApiKeys
from llmservice_operator.router.bodies import BodyReader
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.client_limits import ClientLimits
from llmservice_operator.router.deadly import DeadlyRequests
from llmservice_operator.router.exchange import Limits, Parts
from llmservice_operator.router.gateway_messages import DESTINATION_NAMESPACE, SERVED
from llmservice_operator.router.grants import Grants
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import MODEL

KEY = "key-of-a-client"
ADDRESSES = ("10.0.0.1:8000", "10.0.0.2:8000")


class Envoy:
    """A stream of Envoy's messages about one request."""

    def __init__(self, *messages: pb.ProcessingRequest) -> None:
        self._messages = iter(messages)
        self.answers = list[pb.ProcessingResponse]()

    async def read(self) -> Any:
        return next(self._messages, EOF)

    async def write(self, message: bytes) -> None:
        self.answers.append(pb.ProcessingResponse.FromString(message))

    @property
    def kinds(self) -> list[str | None]:
        return [each.WhichOneof("response") for each in self.answers]


def headers(*, has_body: bool = True) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = not has_body
    named = {":method": "POST", ":path": "/v1/completions", "authorization": f"Bearer {KEY}"}
    for name, value in named.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return message


def body(content: bytes, *, is_last: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=content, end_of_stream=is_last))


def begun(served: str) -> pb.ProcessingRequest:
    """Return the message about an answer that has begun."""
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders())
    if served:
        message.metadata_context.filter_metadata[DESTINATION_NAMESPACE].update({SERVED: served})
    return message


def parts_of(
    chooser: Chooser, keys: ApiKeys | None = None, limits: ClientLimits | None = None
) -> Parts:
    return Parts(
        chooser=chooser,
        admission=Admission(keys),
        grants=Grants(),
        deadly=DeadlyRequests(),
        bodies=BodyReader(),
        limits=Limits(hold_seconds=0.1, heartbeat_seconds=1.0),
        metrics=PickerMetrics(),
        forwarder=None,
        client_limits=limits,
    )


def a_chooser(addresses: tuple[str, ...] = ADDRESSES) -> Chooser:
    chooser = Chooser(Holding(Router(MODEL)))
    chooser.update(
        [ReplicaView(f"r{at}", each, False, None, 1e6) for at, each in enumerate(addresses)]
    )
    return chooser
