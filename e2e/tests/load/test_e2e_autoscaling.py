"""The whole way of the number on a real cluster: load, model server, metrics server, HPA, pods.

It takes the machine for ten minutes, so `make test-autoscaling` runs it and `make test` does not.
"""

import asyncio
import json
import re
import statistics
import threading
import time
from dataclasses import dataclass, field

import aiohttp
import pytest

from e2e_support import Cluster, Object, ask, conditions, eventually, wait_ready
from stage import SYSTEM_NAMESPACE, TINY_MODEL, cpu_service

NAME = "loaded"
METRICS_SERVERS = "app.kubernetes.io/component=metrics-server"
CLIENTS = 12
REQUESTS_PER_CONNECTION = 10
"""kube-proxy chooses a pod for each connection: one that is kept for ever meets no new pod."""
ANSWER_TOKENS = 24
SATURATION_SECONDS = 20.0
OVERLOAD = 1.1
"""Offered load as a share of what one pod can do at most: surely more than its SLO allows."""


@dataclass
class Load:
    """Requests by so many keep-alive clients, at a rate or as fast as they are answered."""

    url: str
    rate: float | None
    seconds: float | None = None
    """None: until `stop`."""
    answered: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        end = None if self.seconds is None else time.monotonic() + self.seconds
        await asyncio.gather(*(self._client(number, end) for number in range(CLIENTS)))

    async def _client(self, number: int, end: float | None) -> None:
        period = 0.0 if self.rate is None else CLIENTS / self.rate
        due = time.monotonic() + number * period / CLIENTS
        while not self._is_over(end):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
                for _ in range(REQUESTS_PER_CONNECTION):
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    if self._is_over(end):
                        return
                    await self._ask(session)
                    due = max(due + period, time.monotonic() - period)

    def _is_over(self, end: float | None) -> bool:
        return self._stop.is_set() or (end is not None and time.monotonic() > end)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        body = {
            "model": NAME,
            "prompt": f"{time.monotonic()} The sea in winter is grey and cold",
            "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True,
        }
        try:
            async with session.post(f"{self.url}/v1/completions", json=body) as response:
                answer = await response.json()
                tokens = answer["usage"]["completion_tokens"] if response.status == 200 else 0
                if tokens == ANSWER_TOKENS:
                    self.answered += 1
                else:
                    self.failures.append(f"{response.status}: {str(answer)[:200]}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failures.append(repr(error))


def throughput(url: str) -> float:
    """Return how many requests a second are answered when more would not be answered faster."""
    with Load(url, rate=None, seconds=SATURATION_SECONDS) as load:
        load._thread.join()
    assert load.failures == []
    return load.answered / SATURATION_SECONDS


@pytest.fixture(scope="module")
def url(cluster: Cluster, namespace: str) -> str:
    service = cpu_service(NAME, f"hf://{TINY_MODEL}")
    service["spec"]["resources"] = {
        "requests": {"cpu": "200m", "memory": "1Gi"},
        "limits": {"cpu": "500m"},
    }
    service["spec"]["slo"] = {"ttftMilliseconds": 2000, "itlMilliseconds": 200}
    cluster.apply(service, namespace)
    wait_ready(cluster, NAME, namespace)
    return cluster.address_of(NAME, namespace)


def patch(cluster: Cluster, namespace: str, spec: Object) -> None:
    change = json.dumps({"spec": spec})
    cluster.kubectl("patch", "llm", NAME, "-n", namespace, "--type=merge", f"--patch={change}")


def replicas(cluster: Cluster, namespace: str) -> int:
    found = cluster.read("deployment", NAME, namespace)
    assert found is not None
    count: int = found["spec"]["replicas"]
    return count


def scaling_active(cluster: Cluster, namespace: str) -> tuple[str, str]:
    hpa = cluster.read("hpa", NAME, namespace)
    assert hpa is not None
    found = {each["type"]: each for each in hpa["status"]["conditions"]}["ScalingActive"]
    return found["status"], found["message"]


def metrics_servers(cluster: Cluster) -> list[Object]:
    pods = cluster.list("pods", SYSTEM_NAMESPACE, METRICS_SERVERS)
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def demand(pod: Object, namespace: str) -> float:
    report = ask(f"http://{pod['status']['podIP']}:8081/v1/scaling/{namespace}/{NAME}")
    assert report["demandPercent"] is not None, report["message"]
    return float(report["demandPercent"])


def test_load_for_two_brings_two_and_none_is_cut_on_the_way_back_to_one(
    cluster: Cluster, namespace: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(text: str) -> None:
        with capsys.disabled():
            print(text, flush=True)

    one = throughput(url)
    patch(cluster, namespace, {"replicas": 2})
    wait_ready(cluster, NAME, namespace)
    two = throughput(url)
    say(f"\none pod: {one:.1f} requests/s; two: {two:.1f}, {two / one:.2f} times as many")
    assert two / one >= 1.7

    patch(cluster, namespace, {"replicas": 1})
    wait_ready(cluster, NAME, namespace)
    patch(cluster, namespace, {"replicas": None, "autoscaling": {"maxReplicas": 3}})
    deployment = cluster.read("deployment", NAME, namespace)
    assert deployment is not None
    template = deployment["spec"]["template"]
    eventually(
        lambda: all(demand(pod, namespace) >= 0 for pod in metrics_servers(cluster)), within=120
    )
    assert replicas(cluster, namespace) == 1

    began = time.monotonic()
    with Load(url, rate=OVERLOAD * one) as load:
        eventually(lambda: replicas(cluster, namespace) >= 2, within=180)
        say(f"after {time.monotonic() - began:.0f} s there are {replicas(cluster, namespace)}")
        wait_ready(cluster, NAME, namespace)
        say(f"after {time.monotonic() - began:.0f} s they are ready")
        say(cluster.kubectl("get", "hpa", "-n", namespace))
        assert re.search(r"\d+/85 \(avg\)", cluster.kubectl("get", "hpa", "-n", namespace))

        # Both answer alike, so it does not matter whom the API server asks.
        first, second = metrics_servers(cluster)
        pairs = [(demand(first, namespace), demand(second, namespace)) for _ in range(250)]
        off = statistics.mean(abs(a - b) / max(a, b) for a, b in pairs)
        say(f"two metrics servers differ by {100 * off:.1f} % in 500 answers")
        assert off <= 0.02

        # One of them may go.
        cluster.kubectl("delete", "pod", "-n", SYSTEM_NAMESPACE, first["metadata"]["name"])
        until = time.monotonic() + 40
        while time.monotonic() < until:
            assert scaling_active(cluster, namespace)[0] == "True"
            time.sleep(2)

        # Without any, what is there stays.
        held = replicas(cluster, namespace)
        servers = ["deployment", "-n", SYSTEM_NAMESPACE, "-l", METRICS_SERVERS]
        cluster.kubectl("scale", *servers, "--replicas=0")
        eventually(lambda: scaling_active(cluster, namespace)[0] == "False", within=90, every=2)
        say(f"HPA without metrics servers: {scaling_active(cluster, namespace)[1]}")

        def is_told() -> bool:
            told = conditions(cluster.read("llm", NAME, namespace))["MetricsAvailable"]
            return bool(told["status"] != "True")

        eventually(is_told, within=90, every=2)
        assert replicas(cluster, namespace) == held
        cluster.kubectl("scale", *servers, "--replicas=2")
        eventually(lambda: scaling_active(cluster, namespace)[0] == "True", within=240, every=2)
        assert replicas(cluster, namespace) >= 2
    assert load.failures == []

    began = time.monotonic()
    with Load(url, rate=1.0) as trickle:
        eventually(lambda: replicas(cluster, namespace) == 1, within=420, every=2)
        say(f"{time.monotonic() - began:.0f} s after the load there is one again")
        wait_ready(cluster, NAME, namespace)
    assert trickle.failures == []
    deployment = cluster.read("deployment", NAME, namespace)
    assert deployment is not None
    assert deployment["spec"]["template"] == template
