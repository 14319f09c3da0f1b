"""Tests the order in which pods that ended are considered."""

import pytest

from llmservice_operator.api.reasons import Reason
from llmservice_operator.workload.ended_pods import ended_problem
from operator_support.pods import FULL_CACHE, a_failed_pod, ago
from operator_support.services import NOW


@pytest.mark.parametrize("is_first", [True, False])
def test_the_problem_is_that_of_the_pod_that_ended_last_and_not_of_the_youngest(
    is_first: bool,
) -> None:
    evicted = a_failed_pod("Evicted", FULL_CACHE, seconds=60)
    lost = a_failed_pod("NodeLost", "Node node-7 is gone.", seconds=90)
    # The older pod ran longer.
    lost["status"]["conditions"][0]["lastTransitionTime"] = ago(30)
    pods = [lost, evicted] if is_first else [evicted, lost]

    found = ended_problem(pods, NOW)

    assert found is not None
    assert found.reason is Reason.NODE_LOST
