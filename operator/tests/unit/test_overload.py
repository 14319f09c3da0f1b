"""Tests which failures delay all requests to the API server, and which do not."""

import pytest

from llmservice_operator.cluster.overload import FAILURE_BURST, FAILURES_PER_SECOND, Overload
from llmservice_operator.errors import ClusterError, Conflict, Forbidden, NotFound, Rejected
from operator_support.workqueue import StandingClock

BUSY = ClusterError("too many requests", 429, retry_after_seconds=7.0)
OF_ONE_OBJECT = [
    NotFound("there is none", 404),
    Conflict("was changed", 409),
    Forbidden("exceeded quota", 403),
    Rejected("is immutable", 422),
    ClusterError('failed calling webhook "policy.example.com"', 500),
    ClusterError('admission webhook "policy.example.com" denied the request', 429, 300.0),
]


@pytest.fixture
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture
def overload(clock: StandingClock) -> Overload:
    return Overload(clock.time)


def test_nothing_is_sent_for_as_long_as_the_api_server_asks(
    overload: Overload, clock: StandingClock
) -> None:
    overload.note(BUSY)
    clock.advance(4.0)
    with pytest.raises(ClusterError, match=r"^not sent: .* a pause of 3 s$") as raised:
        overload.check()
    assert raised.value.retry_after_seconds == 3.0
    assert raised.value.requests == 0
    clock.advance(3.0)
    overload.check()


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_an_outage_gets_few_requests_however_many_are_wanted(
    overload: Overload, clock: StandingClock, status: int
) -> None:
    sent = 0
    for _ in range(1000):
        clock.advance(0.01)
        try:
            overload.check()
        except ClusterError:
            continue
        sent += 1
        overload.note(ClusterError("away", status))
    assert sent == pytest.approx(10 * FAILURES_PER_SECOND + FAILURE_BURST, abs=1)


def test_the_name_of_an_object_exempts_no_failure(overload: Overload) -> None:
    overload.note(
        ClusterError("PATCH /api/v1/namespaces/webhook/services/webhook: 429: busy", 429, 7)
    )
    with pytest.raises(ClusterError, match="a pause of 7 s"):
        overload.check()


@pytest.mark.parametrize("error", OF_ONE_OBJECT, ids=str)
def test_a_refusal_of_one_object_keeps_no_request_back(
    overload: Overload, error: ClusterError
) -> None:
    for _ in range(1000):
        overload.note(error)
        overload.check()
