"""Tests that many simultaneous events do not block the event loop of the operator."""

from collections.abc import Callable

from llmservice_operator.kinds import LLMSERVICES
from operator_support.fault_flows import is_observed
from operator_support.fault_proxy import FaultProxy
from operator_support.fault_sample import IS_LONG
from operator_support.processes import Api, OperatorProcess, make_service, until_settled
from shared_support.scrape import metric_of
from shared_support.waiting import eventually

SERVICES = 300 if IS_LONG else 10
REPEATS = 5
LONGEST_LAG = "0.25" if IS_LONG else "10.0"
"""Upper bound of a bucket of the histogram, in seconds. In the short form, concurrent tests take
the CPU from the operator for some seconds, so only longer blockages are found, such as a wait for
another process."""
LAG = "llmservice_event_loop_lag_seconds"


def measured_and_late(operator: OperatorProcess) -> tuple[float, float]:
    """Return how often the lag was measured since the start, and how often it was too long."""
    scrape = operator.metrics()
    measured = metric_of(scrape, f"{LAG}_count")
    return measured, measured - metric_of(scrape, f"{LAG}_bucket", le=LONGEST_LAG)


def test_a_storm_of_events_does_not_block_the_event_loop(
    api: Api, proxy: FaultProxy, start: Callable[..., OperatorProcess], namespace: str
) -> None:
    proxy.faults.on_events = lambda _, events: [each for each in events for _ in range(REPEATS)]
    with start(AUDIT_PERIOD_SECONDS="1") as operator:
        operator.until_leading()
        before = measured_and_late(operator)
        for number in range(SERVICES):
            api.create(LLMSERVICES, make_service(f"llm-{number}", namespace))
        # Each read of a metric scrapes the operator.
        eventually(lambda: operator.metric(f"{LAG}_count") and is_observed(api, namespace))
        until_settled(operator)
        measured, late = (
            now - then for now, then in zip(measured_and_late(operator), before, strict=True)
        )
        print(f"{late:.0f} of {measured:.0f} times the event loop lagged by over {LONGEST_LAG} s")
        assert measured > 10
        assert late == 0
