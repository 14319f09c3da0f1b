"""Tests when a service has a router, and in which order its clients are switched to it and back."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.router import (
    NO_ROUTER,
    POLICY_SECONDS,
    SELECTOR_SECONDS,
    RouterDecision,
    decide_router,
    is_router_wanted,
)
from llmservice_operator.settings import OperatorSettings
from operator_support.pods import ago
from operator_support.services import NOW, SETTINGS, a_deployment, a_service

BY_DEFAULT = SETTINGS.model_copy(update={"router_by_default": True})
ON, OFF = {"router": {"enabled": True}}, {"router": {"enabled": False}}
READY = a_deployment(replicas=2, updated=2, ready=2, desired=2)
ONE_READY = a_deployment(replicas=2, updated=2, ready=1, desired=2)
NONE_READY = a_deployment(replicas=2, updated=2, ready=0, desired=2)
OLD_READY = a_deployment(replicas=3, updated=1, ready=2, desired=2)
UNSEEN = a_deployment(replicas=2, updated=2, ready=2, desired=2, observed_generation=1)


def recorded(phase: str, seconds: float = 0) -> dict[str, Any]:
    return {"router": {"phase": phase, "since": ago(seconds)}}


WANTED: dict[str, tuple[OperatorSettings, dict[str, Any], dict[str, Any], bool]] = {
    # settings, spec, earlier status, whether a router is wanted
    "one replica": (BY_DEFAULT, {}, {}, False),
    "two replicas": (BY_DEFAULT, {"replicas": 2}, {}, True),
    "more replicas later": (BY_DEFAULT, {"autoscaling": {"maxReplicas": 2}}, {}, True),
    "never more than one": (BY_DEFAULT, {"autoscaling": {"maxReplicas": 1}}, {}, False),
    "two replicas where it is off by default": (SETTINGS, {"replicas": 2}, {}, False),
    "on by the spec": (SETTINGS, ON, {}, True),
    "off by the spec": (BY_DEFAULT, {"replicas": 2, **OFF}, {}, False),
    "off by the spec after it was on": (BY_DEFAULT, OFF, recorded("Serving"), False),
    "one replica after two": (BY_DEFAULT, {"replicas": 1}, recorded("Serving"), True),
    "the default has changed": (SETTINGS, {"replicas": 2}, recorded("Starting"), True),
    "it was switched off": (SETTINGS, {"replicas": 2}, recorded("Stopping"), False),
    "TLS": (SETTINGS, {"service": {"tls": {"secretName": "c"}}}, {}, True),
    "limits": (
        SETTINGS,
        {"auth": {"apiKeysSecretRef": {"name": "k"}, "limits": {"requestsPerMinute": 1}}},
        {},
        True,
    ),
}


@pytest.mark.parametrize(("settings", "spec", "status", "wanted"), WANTED.values(), ids=WANTED)
def test_a_service_has_a_router_by_its_spec_or_else_if_it_may_have_several_replicas(
    settings: OperatorSettings, spec: dict[str, Any], status: dict[str, Any], wanted: bool
) -> None:
    assert is_router_wanted(a_service(spec, status=status), settings) is wanted


def decide(
    spec: dict[str, Any],
    status: dict[str, Any],
    live: Manifest | None,
    settings: OperatorSettings = SETTINGS,
    now: datetime = NOW,
) -> RouterDecision:
    return decide_router(a_service(spec, status=status), settings, live, now)


def test_a_service_without_a_router_has_none() -> None:
    assert decide({}, {}, None) == NO_ROUTER


@pytest.mark.parametrize("live", [None, NONE_READY, ONE_READY, OLD_READY, UNSEEN])
def test_clients_reach_the_replicas_until_all_router_pods_are_ready(live: Manifest | None) -> None:
    for status in ({}, recorded("Starting", 3600)):
        found = decide(ON, status, live)
        assert (found.exists, found.takes_requests, found.is_only_client) == (True, False, False)
        assert found.status is not None
        assert found.status.phase == "Starting"


def test_with_tls_clients_never_reach_the_replicas_which_speak_plain_http() -> None:
    found = decide({"service": {"tls": {"secretName": "c"}}}, {}, None)
    assert found.takes_requests


def test_the_replicas_stay_open_until_the_requests_of_older_connections_have_ended() -> None:
    begun = decide(ON, recorded("Starting", 60), READY)
    assert begun.takes_requests
    assert not begun.is_only_client
    assert begun.requeue_after_seconds == 600
    assert begun.status is not None
    assert (begun.status.phase, begun.status.since) == ("Serving", ago(0))
    assert begun.status.ready == "2/2"
    later = decide(ON, recorded("Serving", 599), READY)
    assert (later.is_only_client, later.requeue_after_seconds) == (False, 1)
    settled = decide(ON, recorded("Serving", 600), READY)
    assert (settled.is_only_client, settled.requeue_after_seconds) == (True, None)


def test_a_limit_of_the_duration_of_requests_bounds_the_wait() -> None:
    short = {**ON, "serving": {"requestTimeoutSeconds": 30}}
    assert decide(short, recorded("Serving", 30), READY).is_only_client
    unlimited = {**ON, "serving": {"requestTimeoutSeconds": 0}}
    assert not decide(unlimited, recorded("Serving", 3599), READY).is_only_client
    assert decide(unlimited, recorded("Serving", 3600), READY).is_only_client


@pytest.mark.parametrize("live", [None, NONE_READY, ONE_READY, OLD_READY, UNSEEN])
def test_clients_stay_with_a_router_that_has_been_ready_once(live: Manifest | None) -> None:
    found = decide(ON, recorded("Serving", 3600), live)
    assert found.takes_requests
    assert found.is_only_client


def test_a_router_that_no_client_has_reached_is_removed_at_once() -> None:
    assert decide(OFF, recorded("Starting"), READY) == NO_ROUTER
    assert decide(OFF, recorded("Serving"), None) == NO_ROUTER


def switched_off(live: Manifest) -> list[tuple[float, bool, int, bool]]:
    """Return each state of a router after it is switched off, with the time when it begins."""
    seen, now, status = [], NOW, recorded("Serving", 3600)
    for _ in range(10):
        found = decide({**OFF, "suspend": False}, status, live, now=now)
        assert not found.is_only_client
        age = (now - NOW).total_seconds()
        seen.append((age, found.takes_requests, found.pods, found.exists))
        if found.status is None or found.requeue_after_seconds is None:
            break
        status = {"router": found.status.model_dump(mode="json", by_alias=True)}
        now += timedelta(seconds=found.requeue_after_seconds)
    return seen


def test_a_router_that_is_switched_off_ends_in_an_order_that_loses_no_request() -> None:
    # The replicas are opened first. Then clients move, and the router pods end when no new clients
    # arrive. The pods keep their addresses and their NetworkPolicy until they have completed their
    # requests: 5 seconds for late requests, 300 for the wait in the router, 600 for the answer of a
    # replica, and 15 for the exit of the processes.
    moved, ended = POLICY_SECONDS, POLICY_SECONDS + SELECTOR_SECONDS
    assert switched_off(READY) == [
        (0, True, 2, True),
        (moved, False, 2, True),
        (ended, False, 0, True),
        (ended + 920, False, 0, False),
    ]


def test_clients_leave_a_router_without_ready_pods_at_once() -> None:
    assert switched_off(NONE_READY)[:2] == [
        (0, False, 2, True),
        (SELECTOR_SECONDS, False, 0, True),
    ]


def test_a_lost_record_starts_the_phase_again() -> None:
    on, off = decide(ON, {}, READY), decide(OFF, {}, READY)
    assert on.takes_requests
    assert not on.is_only_client
    assert off.exists
    assert off.status is not None
    assert (off.status.phase, off.status.since) == ("Stopping", ago(0))


def test_a_router_that_is_switched_on_while_it_stops_takes_the_clients_again() -> None:
    found = decide(ON, recorded("Stopping", 300), READY)
    assert (found.takes_requests, found.is_only_client) == (True, False)
    assert found.status is not None
    assert (found.status.phase, found.status.since) == ("Serving", ago(0))


def test_a_suspended_service_does_not_switch() -> None:
    suspended = {**ON, "suspend": True}
    without_pods = a_deployment(replicas=0, updated=0, ready=0, desired=0)
    assert not decide(suspended, recorded("Starting"), without_pods).takes_requests
    assert decide(suspended, recorded("Serving"), without_pods).takes_requests


def test_the_settled_state_is_that_after_all_phases() -> None:
    service: LLMService = a_service(ON)
    settled = decide(ON, recorded("Serving", 3600), READY)
    found = RouterDecision.settled(service, SETTINGS)
    assert (found.exists, found.takes_requests, found.is_only_client) == (
        settled.exists,
        settled.takes_requests,
        settled.is_only_client,
    )


@pytest.mark.parametrize(("suspended", "pods"), [(False, 3), (True, 0)])
def test_a_suspended_service_has_no_router_pods(suspended: bool, pods: int) -> None:
    spec = {"router": {"enabled": True, "replicas": 3}, "suspend": suspended}
    assert decide(spec, recorded("Serving", 60), READY).pods == pods
