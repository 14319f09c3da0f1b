"""Tests the answers to the Envoy of a Gateway that no Envoy of the router tests asks for."""

from pathlib import Path
from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.router.admission import ApiKeys
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.client_limits import ClientLimits, limiter_of
from llmservice_operator.router.gateway_exchange import GatewayExchange
from llmservice_operator.router.gateway_messages import (
    DESTINATION,
    DESTINATION_NAMESPACE,
    SUBSET,
    SUBSET_NAMESPACE,
)
from llmservice_operator.router.held import HeldRequests
from llmservice_operator.router.picker_metrics import PickerMetrics
from llmservice_operator.router_settings import ClientLimits as LimitsOfClient
from llmservice_operator.router_settings import LimitsOfClients
from operator_support.gateway_envoy import (
    ADDRESSES,
    KEY,
    Envoy,
    a_chooser,
    begun,
    body,
    headers,
    parts_of,
)

TRAILERS = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
END = pb.ProcessingRequest(response_trailers=pb.HttpTrailers())


async def run(chooser: Chooser, *messages: pb.ProcessingRequest) -> Envoy:
    envoy = Envoy(*messages)
    await GatewayExchange(parts_of(chooser), envoy, is_forwarded=False).run()
    return envoy


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
    assert envoy.kinds == ["request_headers", "request_body", "request_trailers"]
    passed = envoy.answers[1].request_body.response.body_mutation.streamed_response
    assert (passed.body, passed.end_of_stream) == (b"{}", False)


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


async def test_a_body_longer_than_announced_is_refused() -> None:
    first = headers()
    first.request_headers.headers.headers.add(key="content-length", raw_value=b"2")
    envoy = await run(a_chooser(), first, body(b"{", is_last=False), body(b"  ", is_last=False))
    assert envoy.kinds == ["immediate_response"]
    assert envoy.answers[0].immediate_response.status.code == 400


async def test_a_body_in_many_small_parts_is_kept_in_few() -> None:
    parts = [body(b"a" * 1024, is_last=False) for _ in range(200)]
    envoy = await run(a_chooser(), headers(), *parts, body(b"b", is_last=True))
    passed = [
        each.request_body.response.body_mutation.streamed_response for each in envoy.answers[1:]
    ]
    assert len(passed) == 4
    assert b"".join(each.body for each in passed) == b"a" * 200 * 1024 + b"b"
    assert [each.end_of_stream for each in passed] == [False] * 3 + [True]


async def test_the_kept_bodies_of_all_requests_have_a_limit() -> None:
    kept, parts = HeldRequests(2, 10), parts_of(a_chooser())

    async def ask(content: bytes) -> str | None:
        envoy = Envoy(headers(), body(content, is_last=False), body(b"", is_last=True))
        await GatewayExchange(parts, envoy, is_forwarded=False, kept=kept).run()
        return envoy.kinds[0]

    with kept.holding(4):
        assert await ask(bytes(7)) == "immediate_response"
        assert await ask(bytes(6)) == "request_headers"
        with kept.holding(0):
            assert await ask(b"") == "immediate_response"
    assert (kept.number, kept.size) == (0, 0)
