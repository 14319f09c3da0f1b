"""Tests autoscaling on a real cluster: load, model server, metrics server, HPA and pods.

The tests use the whole machine for fifteen minutes, so only `make test-autoscaling` runs them. They
run in the order of this file, and each one continues from the state that the previous one left.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from e2e_support import Cluster, CommandFailed, Object, ask, conditions, wait_ready
from llmservice_operator.names import METRICS_SERVER_AUDIENCE
from shared_support.waiting import eventually, holds_for
from stage import SYSTEM_NAMESPACE, TINY_MODEL, cpu_service
from steady_load import SteadyLoad

NAME = "loaded"
METRICS_SERVERS = "app.kubernetes.io/component=metrics-server"
DEMAND = "llm_gpu_demand_percent"
REQUESTS_PER_CONNECTION = 10
CLIENTS_OF_A_POD = 32
"""Number of clients that together use a pod's whole CPU limit. Each client waits for the response
before it sends the next request."""
CLIENTS = 96
"""Number of clients. It is large enough for a constant rate even when responses are late."""
SATURATION_SECONDS = 20.0
OVERLOAD = 1.1
"""Overload as a share of the throughput of one busy pod. A single pod cannot serve it within the
SLO."""
AT_EASE = 0.4
"""Load after the overload, as a share of the throughput of one busy pod. One pod serves it
easily."""
PAIRS_OF_ANSWERS = 250
CHANGE_SECONDS = 60.0
"""Time in seconds for which a change of the number of metrics servers is watched. A new one takes a
minute to know a load by itself."""
OLDEST_SECONDS = 20.0
"""Greatest age in seconds of a demand that the autoscaler reads."""
AWAY_SECONDS = 180.0
LONGEST_WINDOW_SECONDS = 600
"""Longest stabilization window of a scale-down, in seconds."""


@dataclass(frozen=True)
class Stage:
    """The service under load, with access to its state and its metrics."""

    cluster: Cluster
    namespace: str
    url: str
    token: str
    """Token for the load reports of the metrics servers."""
    say: Callable[[str], None]

    def patch(self, spec: Object) -> None:
        self.cluster.patch_spec(NAME, self.namespace, spec)

    def wait_ready(self) -> None:
        wait_ready(self.cluster, NAME, self.namespace)

    def load(self, rate: float | None, per_connection: int | None = None) -> SteadyLoad:
        return SteadyLoad(self.url, NAME, rate, per_connection, clients=CLIENTS)

    def throughput(self, pods: int) -> float:
        """Return the throughput of this number of busy pods together, in requests per second."""
        clients = CLIENTS_OF_A_POD * pods
        load = SteadyLoad(self.url, NAME, None, REQUESTS_PER_CONNECTION, clients)
        with load:
            holds_for(SATURATION_SECONDS, lambda: load.failures == [])
        assert load.failures == []
        return load.answered / load.seconds

    def deployment(self) -> Object:
        found = self.cluster.read("deployment", NAME, self.namespace)
        assert found is not None
        return found

    def replicas(self) -> int:
        count: int = self.deployment()["spec"]["replicas"]
        return count

    def condition(self, kind: str) -> Object:
        return conditions(self.cluster.read("llm", NAME, self.namespace))[kind]

    def hpa(self) -> Object | None:
        return self.cluster.read("hpa", NAME, self.namespace)

    def scaling_active(self) -> tuple[str, str]:
        hpa = self.hpa()
        assert hpa is not None
        found = {each["type"]: each for each in hpa["status"]["conditions"]}["ScalingActive"]
        return found["status"], found["message"]

    def metrics_servers(self) -> list[Object]:
        pods = self.cluster.list("pods", SYSTEM_NAMESPACE, METRICS_SERVERS)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def scale_metrics_servers(self, number: int) -> None:
        servers = ("deployment", "-n", SYSTEM_NAMESPACE, "-l", METRICS_SERVERS)
        self.cluster.kubectl("scale", *servers, f"--replicas={number}")

    def demand(self, metrics_server: Object) -> tuple[float, float]:
        """Return the time of a metrics server's last scrape, and the demand that it reports, in
        percent of one replica.
        """
        address = metrics_server["status"]["podIP"]
        url = f"http://{address}:8081/v1/scaling/{self.namespace}/{NAME}"
        report = ask(url, headers={"Authorization": f"Bearer {self.token}"})
        assert report["demandPercent"] is not None, report["message"]
        return report["at"], float(report["demandPercent"])

    def path_of_demand(self) -> str:
        """Return the API path at which the HPA reads the demand."""
        selector = f"labelSelector=llmservice%3D{NAME}"
        group = "/apis/external.metrics.k8s.io/v1beta1"
        return f"{group}/namespaces/{self.namespace}/{DEMAND}?{selector}"


@pytest.fixture(scope="module")
def stage(cluster: Cluster, namespace: str, pytestconfig: pytest.Config) -> Stage:
    service = cpu_service(NAME, f"hf://{TINY_MODEL}")
    service["spec"]["resources"] = {
        "requests": {"cpu": "200m", "memory": "1Gi"},
        "limits": {"cpu": "500m"},
    }
    service["spec"]["slo"] = {"ttftMilliseconds": 2000, "itlMilliseconds": 50}
    cluster.apply(service, namespace)
    wait_ready(cluster, NAME, namespace)
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        """Print a text at once, even while pytest captures the output."""
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    (account,) = {
        pod["spec"]["serviceAccountName"]
        for pod in cluster.list("pods", SYSTEM_NAMESPACE, METRICS_SERVERS)
    }
    token = cluster.kubectl(
        *("create", "token", account, "-n", SYSTEM_NAMESPACE, "--duration=2h"),
        f"--audience={METRICS_SERVER_AUDIENCE}",
    ).strip()
    return Stage(cluster, namespace, cluster.address_of(NAME, namespace), token, say)


@pytest.fixture(scope="module")
def one(stage: Stage) -> float:
    """Throughput of one busy pod, in requests per second."""
    return stage.throughput(pods=1)


@pytest.fixture(scope="module")
def overload(stage: Stage, one: float) -> Iterator[SteadyLoad]:
    """Load that exceeds one pod's capacity. It starts with autoscaling on and one pod running."""
    stage.patch({"replicas": 1})
    stage.wait_ready()
    # The averages over one minute must no longer contain the load of two pods. Otherwise the
    # demand would require two pods from the start.
    eventually(
        lambda: all(stage.demand(each)[1] < 20 for each in stage.metrics_servers()), within=120
    )
    stage.patch({"replicas": None, "autoscaling": {"maxReplicas": 3}})
    eventually(lambda: stage.scaling_active()[0] == "True", within=90, every=1)
    assert stage.replicas() == 1
    with stage.load(OVERLOAD * one, REQUESTS_PER_CONNECTION) as load:
        yield load


@pytest.fixture(scope="module")
def template(stage: Stage) -> Object:
    """Pod template before the operator has learned anything about the service."""
    found: Object = stage.deployment()["spec"]["template"]
    return found


def test_two_pods_bear_nearly_twice_as_much_as_one(
    stage: Stage, template: Object, one: float
) -> None:
    stage.patch({"replicas": 2})
    stage.wait_ready()
    two = stage.throughput(pods=2)

    stage.say(f"one pod: {one:.1f} requests/s; two: {two:.1f}, {two / one:.2f} times as many")
    assert two / one >= 1.7


def test_load_for_two_brings_two(stage: Stage, overload: SteadyLoad) -> None:
    began = time.monotonic()
    eventually(lambda: stage.replicas() >= 2, within=180)
    stage.say(f"{time.monotonic() - began:.0f} s after the load began the HPA asks for two")
    stage.wait_ready()
    stage.say(f"{time.monotonic() - began:.0f} s after it began they are ready")
    stage.say(stage.cluster.kubectl("get", "hpa", "-n", stage.namespace))

    assert re.search(
        rf"Deployment/{NAME} +\d+/85 \(avg\)",
        stage.cluster.kubectl("get", "hpa", "-n", stage.namespace),
    )
    assert overload.failures == []


def test_the_hpa_reads_it_through_the_api_server_which_asks_for_rights(stage: Stage) -> None:
    answer = json.loads(stage.cluster.kubectl("get", "--raw", stage.path_of_demand()))
    (item,) = answer["items"]
    assert (item["metricName"], item["metricLabels"]) == (DEMAND, {"llmservice": NAME})
    hpa = stage.hpa()
    assert hpa is not None
    (metric,) = hpa["spec"]["metrics"]
    assert metric["external"]["metric"]["name"] == DEMAND

    with pytest.raises(CommandFailed, match="Forbidden"):
        stage.cluster.kubectl("get", "--raw", stage.path_of_demand(), "--as=nobody")
    policy = stage.cluster.read("networkpolicy", NAME, stage.namespace)
    assert policy is not None
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= (
        stage.deployment()["spec"]["template"]["metadata"]["labels"].items()
    )


def test_both_metrics_servers_tell_the_same(stage: Stage, overload: SteadyLoad) -> None:
    first, second = stage.metrics_servers()
    apart: list[float] = []
    across_rounds: list[float] = []

    def differ() -> bool:
        (at, ours), (then, theirs) = stage.demand(first), stage.demand(second)
        # Each server scrapes every five seconds, so one may scrape again between the two requests.
        pairs = apart if at == then else across_rounds
        pairs.append(abs(ours - theirs) / max(ours, theirs))
        return len(apart) + len(across_rounds) == PAIRS_OF_ANSWERS

    eventually(differ, within=180, every=0.1)
    stage.say(
        f"{2 * PAIRS_OF_ANSWERS} answers of two metrics servers, asked by turns: {len(apart)} "
        f"pairs of the same round differ by {100 * max(apart):.2f} % at most, "
        f"{len(across_rounds)} across two rounds by {100 * max(across_rounds, default=0):.2f} %"
    )
    assert max(apart) <= 0.02
    assert len(across_rounds) <= 0.05 * PAIRS_OF_ANSWERS
    assert overload.failures == []


def test_autoscaling_off_and_on_under_load_drops_no_replica(
    stage: Stage, overload: SteadyLoad
) -> None:
    before = stage.replicas()
    assert before >= 2

    def at_least() -> bool:
        return stage.replicas() >= before

    stage.patch({"autoscaling": None})
    holds_for(10, at_least, every=1)
    assert stage.hpa() is None
    stage.patch({"autoscaling": {"maxReplicas": 3}})
    holds_for(30, at_least, every=1)
    eventually(lambda: stage.scaling_active()[0] == "True", within=60, every=1)
    assert stage.replicas() >= before
    assert overload.failures == []


def test_without_one_metrics_server_the_hpa_misses_nothing(
    stage: Stage, overload: SteadyLoad
) -> None:
    first, _ = stage.metrics_servers()

    stage.cluster.kubectl("delete", "pod", "-n", SYSTEM_NAMESPACE, first["metadata"]["name"])

    holds_for(45, lambda: stage.scaling_active()[0] == "True", every=1)
    stage.cluster.kubectl("get", "--raw", stage.path_of_demand())
    assert overload.failures == []


def test_a_third_metrics_server_comes_and_goes_without_a_gap(
    stage: Stage, overload: SteadyLoad
) -> None:
    ages: list[float] = []
    apart: list[float] = []

    def answers() -> bool:
        (item,) = json.loads(stage.cluster.kubectl("get", "--raw", stage.path_of_demand()))["items"]
        ages.append((datetime.now(UTC) - datetime.fromisoformat(item["timestamp"])).total_seconds())
        told: dict[float, list[float]] = {}
        for each in stage.metrics_servers():
            if conditions(each)["Ready"]["status"] == "True":
                at, demand = stage.demand(each)
                told.setdefault(at, []).append(demand)
        apart.extend((max(each) - min(each)) / max(each) for each in told.values())
        return stage.scaling_active()[0] == "True"

    before = stage.replicas()
    for number in (3, 2):
        stage.scale_metrics_servers(number)
        holds_for(CHANGE_SECONDS, answers, every=1)
        assert len(stage.metrics_servers()) == number
    stage.say(
        f"while the metrics servers were 2, 3 and 2, the demand was {max(ages):.0f} s old at most,"
        f" and what they told differed by {100 * max(apart):.2f} % at most"
    )
    assert max(ages) <= OLDEST_SECONDS
    assert max(apart) <= 0.02
    assert stage.replicas() >= before
    assert overload.failures == []


def test_without_any_metrics_server_the_replicas_stay_and_the_conditions_say_why(
    stage: Stage, overload: SteadyLoad
) -> None:
    held = stage.replicas()
    began = time.monotonic()

    stage.scale_metrics_servers(0)

    eventually(lambda: stage.scaling_active()[0] == "False", within=90, every=1)
    stage.say(f"the HPA without metrics servers: {stage.scaling_active()[1]}")
    eventually(
        lambda: stage.condition("MetricsAvailable")["reason"] == "MetricsMissing",
        within=90,
        every=1,
    )
    told = stage.condition("AutoscalingActive")
    stage.say(f"AutoscalingActive without metrics servers: {told['message']}")
    assert (told["status"], told["reason"]) == ("False", "MetricsMissing")
    left = max(began + AWAY_SECONDS - time.monotonic(), 0.0)
    holds_for(left, lambda: stage.replicas() == held, every=1)
    stage.scale_metrics_servers(2)
    eventually(lambda: stage.scaling_active()[0] == "True", within=240, every=1)
    # What they know at first may be little, and is no reason to remove a replica.
    holds_for(60, lambda: stage.replicas() >= held, every=1)
    assert overload.failures == []


def test_without_load_one_is_left_and_no_request_is_cut(
    stage: Stage, one: float, overload: SteadyLoad, template: Object
) -> None:
    overload.stop()
    assert overload.failures == []
    began = time.monotonic()
    hpa = stage.hpa()
    assert hpa is not None

    with stage.load(AT_EASE * one) as rest:
        eventually(lambda: stage.replicas() == 1, within=LONGEST_WINDOW_SECONDS + 120, every=2)
        hpa = stage.hpa()
        assert hpa is not None
        window = hpa["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
        stage.say(
            f"{time.monotonic() - began:.0f} s after the load there is one again; the window is "
            f"{window} s"
        )
        eventually(
            lambda: len(stage.cluster.list("pods", stage.namespace)) == 1, within=120, every=1
        )
    stage.say(f"{rest.answered} requests were answered meanwhile, none was cut")
    assert rest.failures == []
    assert stage.deployment()["spec"]["template"] == template
