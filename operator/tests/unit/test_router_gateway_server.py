"""Tests what a picker does with the requests of Gateways while it asks the first picker."""

import asyncio
from collections.abc import Callable

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from llmservice_operator.router import gateway_server
from llmservice_operator.router.chooser import Chooser
from llmservice_operator.router.envoy_names import SEEN_BODY_BYTES
from llmservice_operator.router.exchange import MARGIN_SECONDS
from llmservice_operator.router.gateway_server import First, FollowingExchange
from llmservice_operator.router.messages import wait
from operator_support.gateway_envoy import Envoy, a_chooser, body, headers, parts_of

HOLD_MILLISECONDS = 100


class Channel:
    """A connection to a first picker that sends these messages and then no more."""

    def __init__(self, *answers: bytes, then: Callable[[], None] = lambda: None) -> None:
        self._answers, self._then = iter(answers), then
        self.has_ended = False

    def stream_stream(self, _: str) -> Callable[[], "Channel"]:
        return lambda: self

    async def write(self, _: bytes) -> None:
        pass

    async def read(self) -> bytes:
        for each in self._answers:
            return each
        self._then()
        await asyncio.Event().wait()
        raise AssertionError

    def cancel(self) -> None:
        self.has_ended = True


async def follow(chooser: Chooser, first: First, *messages: pb.ProcessingRequest) -> Envoy:
    envoy = Envoy(*messages)
    exchange = FollowingExchange(parts_of(chooser), envoy, is_forwarded=False, first=first)
    async with asyncio.timeout(60):
        await exchange.run()
    assert first.channel.has_ended
    assert not first.asks
    return envoy


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_server, "ANSWER_SECONDS", 0.05)


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("has_body", [True, False])
async def test_a_first_picker_without_a_sign_of_life_is_not_awaited_for_the_whole_hold(
    has_body: bool,
) -> None:
    messages = (body(b"{}", is_last=True),) if has_body else ()
    envoy = await follow(a_chooser(), First(Channel()), headers(has_body=has_body), *messages)
    assert envoy.kinds[0] == "request_headers"


async def test_a_picker_that_loses_the_first_one_chooses_itself_at_once() -> None:
    first = First(Channel(wait(3600), then=lambda: first.lose()))
    envoy = await follow(a_chooser(), first, headers(), body(b"{}", is_last=True))
    assert envoy.answers[0].HasField("override_message_timeout")
    assert envoy.kinds[1] == "request_headers"


async def test_a_request_that_the_first_picker_held_waits_only_for_the_time_that_is_left() -> None:
    first = First(Channel(wait(HOLD_MILLISECONDS / 2000)))
    envoy = await follow(a_chooser(()), first, headers(), body(b"{}", is_last=True))
    again, refusal = envoy.answers[1:]
    longest = MARGIN_SECONDS * 1000 + HOLD_MILLISECONDS / 2
    assert again.override_message_timeout.ToMilliseconds() <= longest
    assert refusal.immediate_response.status.code == 503


async def test_a_long_body_needs_no_grant_while_the_first_picker_is_asked() -> None:
    granted = []
    parts = parts_of(a_chooser())

    def note() -> None:
        granted.append(parts.grants.granted)
        first.lose()

    first = First(Channel(then=note))
    envoy = Envoy(headers(), body(bytes(SEEN_BODY_BYTES), is_last=True))
    await FollowingExchange(parts, envoy, is_forwarded=False, first=first).run()
    assert granted == [0]
