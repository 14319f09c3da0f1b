"""Tests the answers to the Envoy of a Gateway that no Envoy of the router tests asks for."""

from pathlib import Path
from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.router.admission import Admission, ApiKeys
from llmservice_operator.router.bodies import BodyReader
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.client_limits import ClientLimits, limiter_of
from llmservice_operator.router.deadly import DeadlyRequests
from llmservice_operator.router.exchange import Limits, Parts
from llmservice_operator.router.gateway_exchange import GatewayExchange
from llmservice_operator.router.gateway_messages import (
    DESTINATION,
    DESTINATION_NAMESPACE,
    SERVED,
    SUBSET,
    SUBSET_NAMESPACE,
)
from llmservice_operator.router.grants import Grants
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.router_settings import ClientLimits as LimitsOfClient
from llmservice_operator.router_settings import LimitsOfClients
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


TRAILERS = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
END = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())


async def run(chooser: Chooser, *messages: pb.ProcessingRequest) -> Envoy:
    envoy = Envoy(*messages)
    await GatewayExchange(parts_of(chooser), envoy, is_forwarded=False).run()
    return envoy


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


async def test_the_header_and_the_metadata_have_the_same_ordered_list() -> None:
    envoy = await run(a_chooser(), headers(), body(b"{}", is_last=True))
    answer = envoy.answers[0]
    (header,) = answer.request_headers.response.header_mutation.set_headers
    assert header.header.key == DESTINATION
    listed = header.header.raw_value.decode()
    assert sorted(listed.split(",")) == sorted(ADDRESSES)
    assert answer.dynamic_metadata[DESTINATION_NAMESPACE][DESTINATION] == listed


async def test_a_body_that_trailers_end_is_passed_on_before_the_trailers() -> None:
    parts = (body(b"{", is_last=False), body(b"}", is_last=False))
    envoy = await run(a_chooser(), headers(), *parts, TRAILERS)
    assert envoy.kinds == ["request_headers", "request_body", "request_body", "request_trailers"]
    passed = [
        each.request_body.response.body_mutation.streamed_response for each in envoy.answers[1:3]
    ]
    assert [(each.body, each.end_of_stream) for each in passed] == [(b"{", False), (b"}", False)]


async def test_trailers_of_an_answer_are_passed_on() -> None:
    envoy = await run(a_chooser(), headers(has_body=False), begun(""), END)
    assert envoy.kinds == ["request_headers", "response_headers", "response_trailers"]


async def test_an_answer_of_the_second_address_counts_as_a_retry() -> None:
    for at, is_full in ((0, False), (1, True)):
        chooser = a_chooser()
        listed = (await run(chooser, headers(has_body=False))).answers[0]
        order = listed.dynamic_metadata[DESTINATION_NAMESPACE][DESTINATION].split(",")
        await run(chooser, headers(has_body=False), begun(order[at]))
        first = chooser.router.replicas[f"r{ADDRESSES.index(order[0])}"]
        assert first.is_full is is_full
        assert first.own_requests == 0


async def test_a_request_whose_only_allowed_replicas_are_unknown_is_refused() -> None:
    for has_body in (True, False):
        message = headers(has_body=has_body)
        hint = message.metadata_context.filter_metadata[SUBSET_NAMESPACE]
        hint.update({SUBSET: ["192.0.2.1:8000"]})
        envoy = await run(a_chooser(), message, body(b"{}", is_last=True))
        assert envoy.kinds == ["immediate_response"]  # without a wait
        assert envoy.answers[0].immediate_response.status.code == 503


async def test_a_request_without_any_replica_is_refused_after_the_hold() -> None:
    envoy = await run(a_chooser(()), headers(), body(b"{}", is_last=True))
    wait, refusal = envoy.answers
    assert wait.HasField("override_message_timeout")
    assert refusal.immediate_response.status.code == 503


async def test_an_envoy_that_keeps_the_answer_gets_no_part_of_it_back() -> None:
    first = headers(has_body=False)
    first.protocol_config.request_body_mode = 4
    first.protocol_config.response_body_mode = 1
    part = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"data", end_of_stream=True))
    envoy = await run(a_chooser(), first, begun(""), part)
    assert not envoy.answers[-1].response_body.response.HasField("body_mutation")


async def test_the_limits_of_a_client_hold_and_end_with_its_request(tmp_path: Path) -> None:
    (tmp_path / "client").write_text(KEY)
    chooser = a_chooser()
    chooser.limiter = limiter_of(LimitsOfClients(default=LimitsOfClient(concurrent=1)))
    limits = ClientLimits(chooser.limiter, chooser, PickerMetrics())
    parts = parts_of(chooser, ApiKeys(tmp_path), limits)

    async def ask(envoy: Envoy) -> list[str | None]:
        await GatewayExchange(parts, envoy, is_forwarded=False).run()
        return envoy.kinds

    class Busy(Envoy):
        async def read(self) -> Any:
            if len(self.answers) == 2:  # while the request has its answer
                other = Envoy(headers(has_body=False))
                assert await ask(other) == ["immediate_response"]
                assert other.answers[0].immediate_response.status.code == 429
            return await super().read()

    first = Busy(headers(has_body=False), begun(""))
    assert await ask(first) == ["request_headers", "response_headers"]
    assert await ask(Envoy(headers(has_body=False))) == ["request_headers"]
