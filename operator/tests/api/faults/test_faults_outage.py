"""Tests an API server that sends no response, or no useful one, for some time."""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest

from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES
from operator_support.fault_flows import is_observed
from operator_support.fault_proxy import Answer, Cut, Drop, Fault, FaultProxy, Seen
from operator_support.fault_sample import OUTAGE_SECONDS, sampled
from operator_support.processes import Api, OperatorProcess, make_service, until_settled
from shared_support.waiting import eventually, holds_for

RETRY_AFTER_SECONDS = 3
SERVICES_MADE = 3
HIGHEST_RATE = 20.0
"""Maximum number of requests per second."""
FIRST_SECONDS = 2.0
"""Time in seconds for the first attempts, whose rate has no limit."""
OUTAGES: dict[str, Fault] = {
    "dropped": Drop(),
    "dropped after the write": Drop(is_forwarded=True),
    "truncated": Cut(20),
    "503": Answer.failure(503, "the server is overloaded"),
    "409": Answer.failure(409, "the object has been modified"),
    "429": Answer.failure(429, "too many requests", Retry_After=str(RETRY_AFTER_SECONDS)),
    "page": Answer.page(),
}


@pytest.mark.parametrize("name", sampled(list(OUTAGES), 1))
def test_the_operator_survives_an_outage_with_few_requests_and_then_converges(
    api: Api,
    proxy: FaultProxy,
    start: Callable[..., OperatorProcess],
    namespace: str,
    name: str,
) -> None:
    def hinder(seen: Seen) -> Fault | None:
        if name == "409" and not seen.is_write:
            return None  # an API server never sends 409 for a read
        return None if seen.is_of_lease or seen.is_watch else OUTAGES[name]

    with start() as operator:
        operator.until_leading()
        api.create(LLMSERVICES, make_service("before", namespace))
        eventually(lambda: is_observed(api, namespace), 30)
        until_settled(operator)
        proxy.faults.on_request = hinder
        begin = max(each.at for each in proxy.requests())
        for number in range(SERVICES_MADE):
            api.create(LLMSERVICES, make_service(f"llm-{number}", namespace))
        api.delete(DEPLOYMENTS, namespace, "before")
        holds_for(OUTAGE_SECONDS, operator.is_running)
        sent = [each for each in proxy.requests(begin) if not each.is_of_lease]
        assert sent, "the outage was not noticed"
        late = [each for each in sent if each.at > begin + FIRST_SECONDS]
        assert len(late) <= HIGHEST_RATE * (OUTAGE_SECONDS - FIRST_SECONDS)
        if name == "429":
            check_obeys(sent)
        proxy.faults.clear()

        def converged() -> bool:
            assert len(api.list_all(DEPLOYMENTS, namespace)) == SERVICES_MADE + 1
            return is_observed(api, namespace)

        eventually(converged, 60)
        until_settled(operator)


def check_obeys(sent: list[Seen]) -> None:
    """Check that no request was repeated sooner than Retry-After allows."""
    times = defaultdict(list)
    for each in sent:
        if each.path.endswith("/events"):
            continue  # Events of all services share one path
        times[each.method, each.path].append(each.at)
    for (method, path), at in times.items():
        gaps = [later - sooner for sooner, later in pairwise(at)]
        assert min(gaps, default=RETRY_AFTER_SECONDS) >= 0.9 * RETRY_AFTER_SECONDS, (method, path)
