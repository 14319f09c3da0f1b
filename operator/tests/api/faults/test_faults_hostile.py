"""Tests tenants that do anything to the operator's objects, next to quiet tenants."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmservice_operator.children import CHILDREN
from llmservice_operator.kinds import AUTOSCALERS, DEPLOYMENTS, LLMSERVICES
from operator_support.fault_proxy import FaultProxy, proxy_of_its_own_process
from operator_support.fault_sample import IS_LONG, SEED
from operator_support.forked import ForkedOperator
from operator_support.hostile import FOREIGN, Tenant
from operator_support.processes import Api, OperatorProcess, condition, make_service
from operator_support.webhook import webhook
from shared_support.waiting import eventually, holds_for

RUNS_AT_ONCE = 34 if IS_LONG else 4
BATCHES = 15 if IS_LONG else 1
"""Number of batches of runs. The long form has 510 runs in total."""
DISTURBED_SECONDS = 40.0 if IS_LONG else 10.0
CALM_AFTER_SECONDS = 60.0 if IS_LONG else 10.0
"""Time in seconds after which no object is written more than once per second."""
MEASURED_SECONDS = 15.0 if IS_LONG else 6.0
QUIET_WITHIN_SECONDS = 30.0
LEASE_SECONDS = 60
"""The tenants, their webhooks and the API server share the CPUs with the operator, and can delay it
for longer than the deadline of the default Lease."""


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with proxy_of_its_own_process() as running:
        yield running


@pytest.fixture
def namespaces(api: Api) -> Iterator[list[str]]:
    """Names of namespaces. Each namespace that the test adds is deleted after the test."""
    made: list[str] = []
    yield made
    for name in made:
        api.request("DELETE", LLMSERVICES.path(name))
        for kind in ("ResourceQuota", "LimitRange"):
            api.request("DELETE", f"/api/v1/namespaces/{name}/{kind.lower()}s")
        api.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_tenant_stops_the_operator_or_makes_it_write_endlessly_or_delays_another_tenant(
    api: Api, proxy: FaultProxy, namespaces: list[str], tmp_path: Path, batch: int
) -> None:
    seeds = [SEED * 10_000 + batch * RUNS_AT_ONCE + number for number in range(RUNS_AT_ONCE)]
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    stamp = random.Random(time.time_ns()).randrange(10**6)
    tenants = [Tenant(seed, f"hostile-{seed}-{stamp}") for seed in seeds]
    quiet = [f"quiet-{seed}-{stamp}" for seed in seeds]
    own = f"operator-{seeds[0]}-{stamp}"
    for name in (own, *quiet, *(each.namespace for each in tenants)):
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        namespaces.append(name)
    watched = ",".join(name for name in namespaces if name != own)
    log = tmp_path / "operator.log"
    settings = {"KUBECONFIG": proxy.kubeconfig(tmp_path), "LEASE_SECONDS": str(LEASE_SECONDS)}
    with (
        ForkedOperator(log, own, WATCH_NAMESPACES=watched, **settings) as operator,
        ExitStack() as webhooks,
        ThreadPoolExecutor(RUNS_AT_ONCE) as pool,
    ):
        operator.until_leading()
        for tenant in tenants:
            folder = tmp_path / tenant.namespace
            folder.mkdir()
            answer = webhook(api, tenant.namespace, "*", "*", folder, tenant.review)
            webhooks.enter_context(answer)
        list(pool.map(Tenant.begin, tenants))
        until = time.monotonic() + DISTURBED_SECONDS
        disturbing = [pool.submit(tenant.disturb, until) for tenant in tenants]
        for name in quiet:
            served_within(api, operator, name)
        for each in disturbing:
            each.result()
        holds_for(CALM_AFTER_SECONDS, operator.is_running)
        try:
            check_calm(proxy, operator)
            for tenant in tenants:
                check_told(api, tenant.namespace)
            check_foreign(proxy)
            check_log(operator)
        except AssertionError as error:
            told = [line for each in tenants if each.namespace in str(error) for line in each.done]
            print("\n".join(told))
            raise
        assert operator.is_running()


def served_within(api: Api, operator: OperatorProcess, namespace: str) -> None:
    """Check that a service of a quiet namespace gets its children soon."""
    api.create(LLMSERVICES, make_service("llm", namespace))

    def is_served() -> bool:
        assert operator.is_running(), operator.log.read_text()[-3000:]
        live = api.get(LLMSERVICES, namespace, "llm")
        assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
        return api.read(DEPLOYMENTS, namespace, "llm") is not None

    eventually(is_served, QUIET_WITHIN_SECONDS, f"the service of {namespace}")


def check_calm(proxy: FaultProxy, operator: OperatorProcess) -> None:
    begin = time.monotonic()
    holds_for(MEASURED_SECONDS, operator.is_running)
    written = Counter(each.path for each in proxy.writes(begin))
    loops = {path: count for path, count in written.items() if count > MEASURED_SECONDS}
    assert not loops, f"writes in {MEASURED_SECONDS:g} s: {loops}"


def check_told(api: Api, namespace: str) -> None:
    """Check that every service has a condition Ready about its present spec, with a reason."""

    def is_told() -> bool:
        for service in api.list_all(LLMSERVICES, namespace):
            if "deletionTimestamp" in service["metadata"]:
                continue
            ready = condition(service, "Ready")
            assert ready["reason"], (namespace, service)
            assert ready["observedGeneration"] == service["metadata"]["generation"]
            if api.read(DEPLOYMENTS, namespace, service["metadata"]["name"]) is None:
                assert ready["status"] != "True", (namespace, ready)
        return True

    eventually(is_told, QUIET_WITHIN_SECONDS, f"the statuses of {namespace}")


def check_foreign(proxy: FaultProxy) -> None:
    assert AUTOSCALERS in {child.kind for child in CHILDREN}
    mine = [
        each for each in proxy.writes() if each.path.endswith(f"/{AUTOSCALERS.plural}/{FOREIGN}")
    ]
    assert not mine, "an object of another owner was written"


def check_log(operator: OperatorProcess) -> None:
    """Check that the operator logged no unexpected error."""
    faults = [
        line
        for line in operator.log.read_text().splitlines()
        if '"level": "ERROR"' in line and "Traceback" in line
    ]
    assert not faults, faults[0]
