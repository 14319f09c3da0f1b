"""Kills and replaces the parts that wake a service, while it has no replicas and while it wakes.

`make test-routing PART=zero-faults` runs two rounds with each fault. LLMSERVICE_TEST_ROUNDS sets
ten times another number.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from bursts import Burst, half_streams
from e2e_support import PATIENCE, Cluster, conditions, until_reason
from faults import Scene
from impatient_clients import Ending, Request
from pod_processes import OPERATOR, process_of
from routed import KEY, METRICS_SERVERS, ROUNDS, Routed
from shared_support.waiting import eventually
from stage import SYSTEM_NAMESPACE
from wakes import (
    first_replica,
    is_idle,
    leading_operator,
    restart_release,
    resting_spec,
    until_resting,
    wait_for_release,
)

pytestmark = pytest.mark.local

NAME, BRIEF = "chat", "brief"
REQUESTS = 20
HOLD_SECONDS = 600
BRIEF_HOLD_SECONDS = 60
"""Longest time in seconds for which a request waits in the service without metrics servers."""
CREATED_WITHIN_SECONDS = 25.0
"""Time in seconds from the first request until the API server has a pod, during a fault."""
TOLD_WITHIN_SECONDS = 30.0
"""Time in seconds after which the status says that the metrics servers are away."""
OPEN_REQUESTS = "envoy_http_downstream_rq_active"
"""Metric of a router pod: requests of its clients."""

AT_ZERO, WAKING = "at zero", "during a wake"


@pytest.fixture(scope="module")
def service(routed: Callable[..., Routed]) -> Routed:
    """Return a service that has no replicas while nobody uses it."""
    return routed(NAME, replicas=None, **resting_spec(HOLD_SECONDS, most_replicas=1))


@pytest.fixture(scope="module")
def brief(routed: Callable[..., Routed]) -> Routed:
    """Return such a service whose requests wait for a short time."""
    return routed(BRIEF, replicas=None, **resting_spec(BRIEF_HOLD_SECONDS, most_replicas=1))


def kill_metrics_server_and_leader(service: Routed, number: int) -> None:
    """Kill the processes without a last word, each metrics server in turn."""
    servers = service.cluster.list("pods", SYSTEM_NAMESPACE, METRICS_SERVERS)
    killed = [servers[number % len(servers)], leading_operator(service.cluster)]
    for process in [process_of(pod, OPERATOR) for pod in killed]:
        os.kill(process, signal.SIGKILL)


def change_replicas(service: Routed, number: int) -> None:
    service.patch(engine={"seed": number})


def is_changed(service: Routed, number: int) -> bool:
    pods = [pod["spec"]["containers"][0]["args"] for pod in service.replicas()]
    return all(f"--seed={number}" in arguments for arguments in pods)


@dataclass(frozen=True)
class Fault:
    act: Callable[[Routed, int], None]
    """Causes the fault. The number differs each time."""
    settles: bool = False
    """Whether a request to the service without replicas comes when the change is complete."""
    leaves: Callable[[Routed, int], bool] = lambda _, __: True
    """Whether the pods of the replicas are as they must be afterwards."""
    cuts: bool = False
    """Whether the fault ends connections of clients, which then repeat their requests."""


FAULTS = {
    "metrics server and leader": Fault(kill_metrics_server_and_leader),
    "rollout": Fault(change_replicas, settles=True, leaves=is_changed),
    "operator upgrade": Fault(lambda service, _: restart_release(service.cluster), settles=True),
    "picker": Fault(lambda service, _: service.kill_picker()),
    "router pod": Fault(lambda service, _: service.kill_router_pod(), cuts=True),
}


@pytest.mark.parametrize("stage", [AT_ZERO, WAKING])
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("number", range(1, max(ROUNDS // 10, 1) + 1))
def test_a_service_wakes_and_answers_every_request_despite_a_fault(
    service: Routed, name: str, stage: str, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, mark, cut = FAULTS[name], 2 * number + (stage == WAKING), 0.0
    until_resting(service)
    asked = half_streams(service.url(), REQUESTS)
    with first_replica(service) as until_created:
        if stage == AT_ZERO:
            fault.act(service, mark)
            if fault.settles:
                wait_for_release(service.cluster)
                # Neither the change nor a new operator starts a replica.
                eventually(lambda: is_idle(service), within=PATIENCE, every=1)
        with Burst(NAME, KEY, asked, repeats=fault.cuts) as burst:
            created = until_created() - burst.began
            if stage == WAKING:
                cut = service.metric(service.router_pods()[0], OPEN_REQUESTS) if fault.cuts else 0.0
                fault.act(service, mark)
        seconds = time.monotonic() - burst.began
    with capsys.disabled():
        print(
            f"\nround {number}, {name} {stage}: the first pod after {created:.1f} s, all answers "
            f"after {seconds:.1f} s; {burst.summary()}"
        )
    assert burst.unanswered() == []
    if stage == WAKING:
        assert burst.repeated == cut
    assert created <= CREATED_WITHIN_SECONDS
    eventually(lambda: fault.leaves(service, mark), within=PATIENCE, every=1)


def test_without_metrics_servers_the_status_says_so_and_requests_are_refused_in_time(
    cluster: Cluster,
    local_cluster_name: str,
    brief: Routed,
    capsys: pytest.CaptureFixture[str],
) -> None:
    until_resting(brief)
    asked = half_streams(brief.url(), REQUESTS)
    scene = Scene(cluster, local_cluster_name, brief.namespace, BRIEF)
    with scene.without(METRICS_SERVERS):
        until_gone = ("-n", SYSTEM_NAMESPACE, "-l", METRICS_SERVERS, "--for=delete")
        cluster.kubectl("wait", "pods", *until_gone, f"--timeout={PATIENCE:g}s")
        gone = time.monotonic()
        until_reason(cluster, BRIEF, brief.namespace, "MetricsMissing")
        told = time.monotonic() - gone
        ready = conditions(cluster.read("llm", BRIEF, brief.namespace))["Ready"]
        with Burst(BRIEF, KEY, asked) as refused:
            pass
        seconds = time.monotonic() - refused.began
        replicas = brief.replicas()
    with capsys.disabled():
        print(
            f"\nwithout metrics servers: the status says so after {told:.1f} s, and all requests "
            f"have ended after {seconds:.1f} s; {refused.summary()}"
        )
    assert ready["status"] == "False"
    assert told <= TOLD_WITHIN_SECONDS
    assert [each for each in refused.last if not is_refused_in_time(each)] == []
    assert BRIEF_HOLD_SECONDS <= seconds <= BRIEF_HOLD_SECONDS + 10
    assert replicas == []

    until_resting(brief)
    with first_replica(brief) as until_created, Burst(BRIEF, KEY, asked) as again:
        created = until_created() - again.began
    with capsys.disabled():
        print(f"\nmetrics servers are back: the first pod after {created:.1f} s; {again.summary()}")
    assert again.unanswered() == []
    assert created <= CREATED_WITHIN_SECONDS


def is_refused_in_time(request: Request) -> bool:
    """Return whether a request got its status 503. A stream that has begun gets it as an event."""
    if request.ending is not Ending.REFUSED or "503" not in request.problem:
        return False
    return request.comments > 0 if request.is_stream else request.retry_after.isdigit()
