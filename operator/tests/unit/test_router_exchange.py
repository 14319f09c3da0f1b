"""Tests the answers to Envoy, and what the picker tells the router about a request's source."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc.aio import EOF

from llmservice_operator.names import HELD_HEADER
from llmservice_operator.router.admission import Admission, ApiKeys
from llmservice_operator.router.bodies import BodyReader
from llmservice_operator.router.chooser import Chooser, Chosen
from llmservice_operator.router.deadly import DeadlyRequests
from llmservice_operator.router.exchange import Exchange, Limits, Parts
from llmservice_operator.router.grants import Grants
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router.replica_view import ReplicaView
from llmservice_operator.routing.answers import NO_SOURCE
from llmservice_operator.routing.handover import Message, Sent
from llmservice_operator.routing.holding import Holding
from llmservice_operator.routing.router import Router
from operator_support.replica_reports import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAM = b'{"stream": true}'


class Envoy:
    """A stream of Envoy's messages about one request."""

    def __init__(self, messages: Sequence[pb.ProcessingRequest]) -> None:
        self._messages = iter(messages)
        self.answers: list[str | None] = []
        """Kind of each answer."""

    async def read(self) -> Any:
        return next(self._messages, EOF)

    async def write(self, message: bytes) -> None:
        self.answers.append(pb.ProcessingResponse.FromString(message).WhichOneof("response"))


def small(path: str, key: str, body: bytes, **headers: str) -> list[pb.ProcessingRequest]:
    """Return the message about a request with a small body, whose headers are attributes."""
    message = pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))
    fields = message.attributes["envoy.filters.http.ext_proc"].fields
    sent = {":path": path, "authorization": f"Bearer {key}", **headers}
    for name, value in sent.items():
        fields[f"request.headers['{name}']"].string_value = value
    return [message]


def large(path: str, key: str, body: bytes) -> list[pb.ProcessingRequest]:
    """Return the messages about a request whose headers arrive before its body."""
    message = pb.ProcessingRequest()
    headers = {":method": "POST", ":path": path, "authorization": f"Bearer {key}"}
    for name, value in headers.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return [message, pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))]


def parts_of(chooser: Chooser, admission: Admission) -> Parts:
    return Parts(
        chooser=chooser,
        admission=admission,
        grants=Grants(),
        deadly=DeadlyRequests(),
        bodies=BodyReader(),
        limits=Limits(hold_seconds=1.0, heartbeat_seconds=1.0),
        metrics=PickerMetrics(),
        forwarder=None,
    )


async def test_streams_of_the_same_key_and_route_have_the_same_source(tmp_path: Path) -> None:
    for key in ("first", "second"):
        (tmp_path / key).write_text(key)
    told = list[Message]()
    chooser = Chooser(Holding(Router(MODEL)), tell=told.append)
    chooser.update([ReplicaView("r1", "10.0.0.1:8000", False, None, 1e6)])
    parts = parts_of(chooser, Admission(ApiKeys(tmp_path)))
    for messages in (
        small(CHAT, "first", STREAM),
        small(f"{CHAT}?query=1", "first", STREAM),
        large(CHAT, "first", STREAM),
        small(COMPLETIONS, "first", STREAM),
        small(CHAT, "second", STREAM),
        small(CHAT, "first", b"{}"),
    ):
        await Exchange(parts, Envoy(messages), is_forwarded=False).run()
    sources = [each.dispatch.source for each in told if isinstance(each, Sent)]
    assert len(sources) == 6
    assert sources[0] == sources[1] == sources[2]
    assert len({*sources[2:]}) == 4
    assert sources[5] == NO_SOURCE


async def test_the_end_of_a_response_ends_the_call_without_a_further_answer() -> None:
    chooser = Chooser(Holding(Router(MODEL)))
    chooser.update([ReplicaView("r1", "10.0.0.1:8000", False, None, 1e6)])
    headers = pb.ProcessingRequest(response_headers=pb.HttpHeaders())
    end = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())
    never_read = pb.ProcessingRequest(request_headers=pb.HttpHeaders())
    envoy = Envoy([*small(CHAT, "", STREAM), headers, end, never_read])
    await Exchange(parts_of(chooser, Admission(None)), envoy, is_forwarded=False).run()
    assert envoy.answers == ["request_body", "response_headers"]
    assert chooser.router.replicas["r1"].own_requests == 0


@pytest.mark.parametrize(("holds", "held"), [(True, 1), (False, 0)])
async def test_a_request_without_a_body_is_no_held_request_of_a_service_that_scales_to_zero(
    holds: bool, held: int
) -> None:
    chooser = Chooser(Holding(Router(MODEL)))
    chooser.update([])
    limits = Limits(hold_seconds=0.01, heartbeat_seconds=1.0, holds_without_body=holds)
    parts = replace(parts_of(chooser, Admission(None)), limits=limits)
    (message, _) = large("/v1/models", "", b"")
    message.request_headers.end_of_stream = True
    envoy = Envoy([message])
    await Exchange(parts, envoy, is_forwarded=False).run()
    assert envoy.answers[-1] == "immediate_response"
    assert chooser.holding.counts.arrived == held


class Noting(Chooser):
    """Notes the longest wait of each request, and whether the request goes on waiting after it."""

    waits: ClassVar[list[tuple[float, bool]]]

    async def choose(
        self, *request: Any, waits_elsewhere: bool = False, **more: Any
    ) -> Chosen | None:
        self.waits.append((request[3], waits_elsewhere))
        return None


@pytest.mark.parametrize(
    ("body", "held_ms", "limits", "wait"),
    [
        pytest.param(b"{}", None, (60, 10), (60, False), id="no stream"),
        pytest.param(STREAM, None, (60, 10), (10, True), id="a stream goes to the forwarder"),
        pytest.param(STREAM, None, (5, 10), (5, False), id="a stream that ends before that"),
        pytest.param(STREAM, 15_000, (60, 10), (45, False), id="a forwarded stream"),
        pytest.param(STREAM, 70_000, (60, 10), (0, False), id="a forwarded stream that is late"),
    ],
)
async def test_a_request_waits_until_its_hold_timeout_wherever_it_has_waited_before(
    body: bytes, held_ms: int | None, limits: tuple[float, float], wait: tuple[float, bool]
) -> None:
    Noting.waits = []
    chooser = Noting(Holding(Router(MODEL)))
    parts = replace(
        parts_of(chooser, Admission(None)), limits=Limits(*limits), forwarder="127.0.0.1:9"
    )
    held = {} if held_ms is None else {HELD_HEADER: str(held_ms)}
    envoy = Envoy(small(CHAT, "", body, **held))
    await Exchange(parts, envoy, is_forwarded=held_ms is not None).run()
    assert Noting.waits == [wait]
