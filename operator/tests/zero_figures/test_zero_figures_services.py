"""What a thousand services without replicas cost, and how fast a hundred of them wake together.

The API server, its controllers, the operator and one metrics server are real processes. The router
pods are sockets, because a router pod without requests only lets a question wait.

`make test-routing PART=zero-services` runs it. LLMSERVICE_TEST_SERVICES sets another number of
services.
"""

import os
import resource
import subprocess
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Key
from llmservice_operator.kinds import DEPLOYMENTS, LLMSERVICES, PODS
from llmservice_operator.metrics_server.waking import WATCH_SECONDS
from llmservice_operator.names import ROUTER_LABEL, SERVICE_LABEL
from operator_support.idle_routers import IdleRouters, address_of
from operator_support.metrics import MetricsServerProcess
from operator_support.processes import (
    REPOSITORY,
    Api,
    OperatorProcess,
    kubectl,
    make_service,
    until_settled,
)
from shared_support.cpu_time import cpu_seconds
from shared_support.waiting import eventually

SERVICES = int(os.environ.get("LLMSERVICE_TEST_SERVICES", "1000"))
WOKEN = min(100, SERVICES)
ROUTERS_PER_SERVICE = 2
CONNECTIONS = 4
CALM_SECONDS = WATCH_SECONDS
"""Duration of the measurement of the CPU time, in seconds. Each question is repeated once in this
time."""
MOST_PERCENT = 1.0
"""Largest share of a core that a process needs on average while nothing happens, in percent."""
WOKEN_WITHIN_SECONDS = 10.0
"""Time in seconds from the first held request until each of the services has the pod of a
replica."""
LONG = 1800.0


@pytest.fixture(scope="module")
def api() -> Api:
    api = Api()
    api.apply_file(REPOSITORY / "crds" / "llmservice.yaml")
    eventually(
        lambda: kubectl("wait", "--for=condition=Established", "crd/llmservices.llmservice.dev")
    )
    # Each router pod keeps two sockets open in this process.
    least = 3 * ROUTERS_PER_SERVICE * SERVICES
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert most >= least, f"the tests need {least} open files: raise `ulimit -Hn`, which is {most}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return api


@pytest.fixture(scope="module")
def namespace(api: Api) -> Iterator[str]:
    name = f"zero-{uuid.uuid4().hex[:8]}"
    api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    api.request("DELETE", f"/api/v1/namespaces/{name}")


def for_all(items: Iterable[Key], work: Callable[[Key], object]) -> None:
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(work, items))


def percent_of_a_core(processes: Iterable[OperatorProcess]) -> list[float]:
    before = [(it, cpu_seconds(it.pid), time.monotonic()) for it in processes]
    threading.Event().wait(CALM_SECONDS)
    return [100 * (cpu_seconds(it.pid) - cpu) / (time.monotonic() - at) for it, cpu, at in before]


def test_a_thousand_services_at_zero_cost_nothing_and_a_hundred_wake_together(
    api: Api, namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [(namespace, f"llm-{number}") for number in range(SERVICES)]
    routers = IdleRouters()
    for number in range(ROUTERS_PER_SERVICE * SERVICES):
        routers.services[address_of(number)] = keys[number % SERVICES]
    server = MetricsServerProcess(
        tmp_path / "metrics-server.log", namespace, WATCH_NAMESPACES=namespace
    )
    url = f"http://127.0.0.1:{server.scaling_port}"
    # While the services are created, the API server may answer nobody for longer than the usual
    # Lease.
    settings = {"WATCH_NAMESPACES": namespace, "METRICS_SERVER_URL": url, "LEASE_SECONDS": "120"}
    operator = OperatorProcess(tmp_path / "operator.log", namespace, **settings)
    with server, operator, routers.listening():
        operator.until_leading()
        for_all(keys, lambda key: api.create(LLMSERVICES, a_service(*key)))
        until_all(api, namespace, ROUTER_LABEL, ROUTERS_PER_SERVICE * SERVICES)
        # A workload whose replicas the autoscaler has not taken over yet would get one again.
        until_settled(operator, 10.0, LONG)
        for_all(keys, lambda key: api.patch(DEPLOYMENTS, *key, {"spec": {"replicas": 0}}))
        until_all(api, namespace, SERVICE_LABEL, 0)
        run_routers(api, namespace, routers)
        eventually(lambda: routers.questions == len(routers.services), LONG, "questions wait")
        until_settled(operator, 20.0, LONG)

        of_operator, of_server = percent_of_a_core([operator, server])
        with capsys.disabled():
            print(
                f"\nzero-services: {SERVICES} services at zero cost the operator "
                f"{of_operator:.2f} % and the metrics server {of_server:.2f} % of a core, "
                f"limit {MOST_PERCENT:g} %"
            )

        seconds = wake(api, namespace, routers, keys[:WOKEN])
        with capsys.disabled():
            print(
                f"zero-services: of {WOKEN} services that are woken together, the first has a pod "
                f"after {seconds[0]:.1f} s, and the last after {seconds[-1]:.1f} s, limit "
                f"{WOKEN_WITHIN_SECONDS:g} s"
            )
    assert max(of_operator, of_server) <= MOST_PERCENT
    assert seconds[-1] <= WOKEN_WITHIN_SECONDS


def a_service(namespace: str, name: str) -> dict[str, object]:
    # After the longest request, the router becomes the only client of the replicas. With the
    # default, ten minutes, the operator would write all policies while its CPU time is measured.
    serving = {"requestTimeoutSeconds": 10}
    autoscaling = {"minReplicas": 0, "maxReplicas": 4}
    return make_service(name, namespace, autoscaling=autoscaling, serving=serving)


def until_all(api: Api, namespace: str, label: str, pods: int) -> None:
    eventually(
        lambda: len(api.list_all(PODS, namespace, labelSelector=label)) == pods,
        LONG,
        f"{pods} pods with the label {label}",
        every=5,
    )


def run_routers(api: Api, namespace: str, routers: IdleRouters) -> None:
    """Report all router pods as running at their addresses, in place of a kubelet."""
    addresses = defaultdict[Key, list[str]](list)
    for address, key in routers.services.items():
        addresses[key].append(address)
    found = api.list_all(PODS, namespace, labelSelector=ROUTER_LABEL)
    pods = {
        (namespace, pod["metadata"]["name"]): addresses[
            namespace, pod["metadata"]["labels"][ROUTER_LABEL]
        ].pop()
        for pod in found
    }

    def run(pod: Key) -> None:
        conditions = [{"type": type_, "status": "True"} for type_ in ("Ready", "PodScheduled")]
        address = pods[pod]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        api.patch(PODS, *pod, {"status": {**status, "conditions": conditions}}, "status")

    for_all(pods, run)


def wake(api: Api, namespace: str, routers: IdleRouters, keys: list[Key]) -> list[float]:
    """Let the routers of these services hold a request, all at once. Return the seconds after which
    each of them has the pod of a replica, in ascending order.
    """
    with watched_pods(api, namespace) as created_at:
        began = time.monotonic()
        routers.hold(keys, 1)
        eventually(lambda: len(created_at) == len(keys), 300, "all services are awake")
    routers.hold(keys, 0)
    assert created_at.keys() == {name for _, name in keys}
    return sorted(at - began for at in created_at.values())


@contextmanager
def watched_pods(api: Api, namespace: str) -> Iterator[dict[str, float]]:
    """Watch the pods in a namespace. The result contains the time at which the first pod of a
    replica of each service was seen.
    """
    created_at: dict[str, float] = {}
    lines = 0
    label = SERVICE_LABEL.replace(".", r"\.")
    form = f"{{.metadata.labels.{label}}}|{{.metadata.name}}{{'\\n'}}"
    command = ["kubectl", "get", "pods", "-n", namespace, "--watch-only", "-o", f"jsonpath={form}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:

        def read() -> None:
            nonlocal lines
            for line in watch.stdout or ():
                lines += 1
                if service := line.partition("|")[0]:
                    created_at.setdefault(service, time.monotonic())

        (router, *_) = api.list_all(PODS, namespace, labelSelector=ROUTER_LABEL)
        reader = threading.Thread(target=read)
        reader.start()
        try:
            eventually(lambda: touch(api, router) and lines, describe="the watch begins", every=1)
            yield created_at
        finally:
            watch.terminate()
            reader.join()


def touch(api: Api, pod: Manifest) -> bool:
    """Change an annotation of a pod."""
    mark = {"metadata": {"annotations": {"touched": uuid.uuid4().hex}}}
    api.patch(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], mark)
    return True
