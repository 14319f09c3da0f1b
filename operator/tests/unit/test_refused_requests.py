"""Tests the Events about requests that ended two replicas."""

from dataclasses import dataclass, field

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.router_messages import RefusedRequest, RouterReport
from llmservice_operator.cluster import Key
from llmservice_operator.metrics_server import refused_requests as module
from llmservice_operator.metrics_server.refused_requests import RefusedRequests

QWEN, LLAMA = ("team", "qwen"), ("team", "llama")
ONE, OTHER = "1" * 64, "2" * 64


@dataclass
class Bench:
    now: float = 1000.0
    leads: bool = True
    services: dict[Key, Manifest] = field(
        default_factory=lambda: {key: {"metadata": {"name": key[1]}} for key in (QWEN, LLAMA)}
    )
    events: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Service, type, reason and message."""

    def __post_init__(self) -> None:
        self.requests = RefusedRequests(
            self.services.get, self._record, lambda _: self.leads, lambda: self.now
        )

    async def _record(self, service: Manifest, type_: str, reason: str, message: str) -> None:
        self.events.append((service["metadata"]["name"], type_, reason, message))

    async def note(self, key: Key, *digests: str, left: float = 600.0) -> None:
        refused = (RefusedRequest(digest=digest, seconds_left=left) for digest in digests)
        await self.requests.note(key, RouterReport(refused_requests=tuple(refused)))


async def test_a_refused_request_gives_a_warning_that_says_where_to_look() -> None:
    bench = Bench()
    await bench.note(QWEN)
    await bench.note(QWEN, ONE)
    ((service, type_, reason, message),) = bench.events
    assert (service, type_, reason) == ("qwen", "Warning", "RequestRefused")
    assert "ended two replicas" in message
    assert "1111111111111111. Look into the logs" in message
    assert ONE not in message


async def test_a_request_gives_one_event_however_many_routers_report_it_and_how_often() -> None:
    bench = Bench()
    for _ in range(3):
        await bench.note(QWEN, ONE)
        bench.now += 100
    assert len(bench.events) == 1
    await bench.note(QWEN, ONE, OTHER)
    await bench.note(LLAMA, ONE)
    assert [service for service, *_ in bench.events] == ["qwen", "qwen", "llama"]


async def test_a_request_that_ends_two_replicas_again_later_gives_a_further_event() -> None:
    bench = Bench()
    await bench.note(QWEN, ONE, left=50)
    bench.now += 49
    await bench.note(QWEN, ONE, left=1)
    bench.now += 2
    await bench.note(QWEN, ONE)
    assert len(bench.events) == 2


async def test_a_follower_writes_no_event_and_repeats_none_when_it_takes_over() -> None:
    bench = Bench(leads=False)
    await bench.note(QWEN, ONE)
    bench.leads = True
    await bench.note(QWEN, ONE)
    assert bench.events == []
    await bench.note(QWEN, OTHER)
    assert len(bench.events) == 1


async def test_a_service_that_is_gone_gives_no_event() -> None:
    bench = Bench()
    await bench.note(("team", "gone"), ONE)
    assert bench.events == []


async def test_the_number_of_remembered_requests_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_KNOWN", 10)
    bench = Bench()
    digests = [f"{number:064x}" for number in range(30)]
    await bench.note(QWEN, *digests)
    assert len(bench.events) == 30
    await bench.note(QWEN, digests[-1])
    assert len(bench.events) == 30
    # The oldest one is forgotten.
    await bench.note(QWEN, digests[0])
    assert len(bench.events) == 31
