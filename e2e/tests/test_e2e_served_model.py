"""Tests one CPU service from apply to delete: answers, repair of children, no writes once
converged, and what a Prometheus learns about all this.
"""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chart_support import scraped_labels
from e2e_support import PATIENCE, Cluster, Object, ask, pod_states, read, wait_ready
from monitoring import (
    Prometheus,
    differences_from_documents,
    queries,
    silent,
    start_prometheus,
    stop_prometheus,
)
from pod_processes import PICKER, process_of
from routed import Routed
from shared_support.waiting import eventually
from stage import EXAMPLES, MODEL, SYSTEM_NAMESPACE, localkube

NAME = "smollm2-cpu"
SERVED_MODEL = "smollm2"
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, there was a",
    "The three primary colors are",
    "To make a cup of tea, first",
]
TOKENS = 32
SMALL_GAP = 1e-3
"""If the two best log-probabilities differ by less than this, rounding may select either token."""


@pytest.fixture(scope="module", autouse=True)
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """Prometheus that scrapes the local cluster during the tests of this file; None elsewhere."""
    name = os.environ.get("LOCALKUBE_NAME")
    if name is None:
        yield None
        return
    yield start_prometheus(name, tmp_path_factory.mktemp("prometheus"))
    stop_prometheus(name)


@pytest.fixture(scope="module")
def served(cluster: Cluster, namespace: str) -> Object:
    cluster.apply(EXAMPLES / "smollm2-cpu.yaml", namespace)
    return wait_ready(cluster, NAME, namespace)


@pytest.fixture(scope="module")
def url(cluster: Cluster, namespace: str, served: Object) -> str:
    return cluster.address_of(NAME, namespace)


def served_pods(cluster: Cluster, namespace: str) -> list[Object]:
    return cluster.list("pods", namespace)


def successes(cluster: Cluster, namespace: str) -> float:
    """Return the number of requests that the engines finished, summed over the pods."""
    total = 0.0
    for pod in served_pods(cluster, namespace):
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}:9090/proxy/metrics"
        text = cluster.kubectl("get", "--raw", path)
        lines = [
            line for line in text.splitlines() if line.startswith("vllm:request_success_total")
        ]
        total += sum(float(line.rsplit(" ", 1)[1]) for line in lines)
    return total


def test_answers_five_prompts_exactly_as_transformers_does(
    cluster: Cluster,
    namespace: str,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(PROMPTS))
    expected = json.loads(
        localkube("models", "--reference", str(prompts), "--tokens", str(TOKENS), capture=True)
    )
    before = successes(cluster, namespace)

    divergences = 0
    for reference in expected:
        body = {
            "model": SERVED_MODEL,
            "prompt": reference["prompt"],
            "max_tokens": TOKENS,
            "temperature": 0,
            "return_token_ids": True,
        }
        tokens = ask(f"{url}/v1/completions", body)["choices"][0]["token_ids"]
        position = first_difference(tokens, reference["token_ids"])
        if position is not None:
            divergences += 1
            gap = reference["gaps"][position]
            assert gap < SMALL_GAP, f"{reference['prompt']!r}: token {position}, gap {gap:g}"

    with capsys.disabled():
        print(f"\ndivergences at a top-2 gap below {SMALL_GAP:g}: {divergences} of {len(PROMPTS)}")
    assert successes(cluster, namespace) - before == len(PROMPTS)


def first_difference(tokens: list[int], others: list[int]) -> int | None:
    """Return the position of the first differing token; None when the lists are equal."""
    assert len(tokens) == len(others)
    pairs = enumerate(zip(tokens, others, strict=True))
    return next((position for position, (one, other) in pairs if one != other), None)


def test_generate_answers_with_text_reason_and_usage(url: str) -> None:
    body = {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}

    answer = ask(f"{url}/generate", body)

    assert "Paris" in answer["text"]
    assert answer["finish_reason"] in {"length", "stop"}
    assert answer["usage"]["completion_tokens"] <= 8


def test_runs_restricted_under_a_read_only_root(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    (pod,) = served_pods(cluster, namespace)
    context = pod["spec"]["containers"][0]["securityContext"]

    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        cluster.kubectl("exec", "-n", namespace, pod["metadata"]["name"], "--", "touch", "/usr/x")


def test_get_llm_shows_model_readiness_and_address(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    header, row = cluster.kubectl("get", "llm", NAME, "-n", namespace).splitlines()

    assert header.split()[:3] == ["NAME", "MODEL", "READY"]
    assert MODEL in row
    assert "1/1" in row
    assert f"http://{NAME}.{namespace}.svc" in row


@pytest.mark.local
def test_a_converged_minute_writes_nothing_but_leases(
    cluster: Cluster, namespace: str, served: Object, local_cluster_name: str
) -> None:
    account = f"system:serviceaccount:{SYSTEM_NAMESPACE}:"
    since = datetime.now(UTC)
    deadline = time.monotonic() + 60
    eventually(lambda: time.monotonic() > deadline, within=70, every=5)

    lines = localkube(
        "audit", "--name", local_cluster_name, "--since", since.isoformat(), capture=True
    ).splitlines()
    events = [json.loads(line) for line in lines]
    ours = [event for event in events if event["user"]["username"].startswith(account)]
    # A review is a create request that stores nothing.
    reads, reviews = {"get", "list", "watch"}, {"subjectaccessreviews", "tokenreviews"}
    wanted = {event["objectRef"]["resource"] for event in ours if event["verb"] not in reads}
    assert wanted - reviews == {"leases"}


def test_load_reports_need_a_token_which_the_operator_sends(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    component = "app.kubernetes.io/component="
    servers = cluster.list("pods", SYSTEM_NAMESPACE, f"{component}metrics-server")
    assert len(servers) == 2
    for server in servers:
        with pytest.raises(AssertionError, match="401"):
            ask(f"http://{server['status']['podIP']}:8081/v1/scaling")
    selector = f"{component}operator"
    log = cluster.kubectl("logs", "-n", SYSTEM_NAMESPACE, "-l", selector, "--tail=-1")
    assert "the answer has status" not in log


def test_killing_the_operator_changes_no_served_pod(
    cluster: Cluster, namespace: str, served: Object, url: str
) -> None:
    before = pod_states(served_pods(cluster, namespace))
    operators = cluster.list("pods", SYSTEM_NAMESPACE)
    gone = {pod["metadata"]["name"] for pod in operators}
    cluster.kubectl(
        "delete", "pods", "-n", SYSTEM_NAMESPACE, "--all", "--grace-period=0", "--force"
    )

    def replaced() -> bool:
        pods = cluster.list("pods", SYSTEM_NAMESPACE)
        ready = [p for p in pods if p["metadata"]["name"] not in gone and all_ready(p)]
        return len(ready) == len(operators)

    eventually(replaced, within=PATIENCE, describe="new operator pods ready")
    assert pod_states(served_pods(cluster, namespace)) == before
    assert ask(f"{url}/v1/models")["data"][0]["id"] == SERVED_MODEL


def all_ready(pod: Object) -> bool:
    states = pod["status"].get("containerStatuses", [])
    return bool(states) and all(state["ready"] for state in states)


def test_a_deleted_service_object_is_back_within_five_seconds(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    wait_for_leader(cluster)
    cluster.kubectl("delete", "service", NAME, "-n", namespace)

    eventually(lambda: cluster.read("service", NAME, namespace), within=5, every=0.2)


def test_an_edited_deployment_is_back_within_five_seconds(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    pods = pod_states(served_pods(cluster, namespace))
    cluster.kubectl("scale", "deployment", NAME, "-n", namespace, "--replicas=2")

    def restored() -> bool:
        deployment = cluster.read("deployment", NAME, namespace)
        return deployment is not None and deployment["spec"]["replicas"] == 1

    eventually(restored, within=5, every=0.2)
    eventually(
        lambda: pods.items() <= pod_states(served_pods(cluster, namespace)).items(), within=5
    )


def wait_for_leader(cluster: Cluster) -> None:
    """Wait until an existing pod holds the Lease. A killed leader's Lease must expire first."""

    def held() -> bool:
        holders = {
            lease["spec"].get("holderIdentity")
            for lease in cluster.list("leases", SYSTEM_NAMESPACE)
        }
        pods = {pod["metadata"]["name"] for pod in cluster.list("pods", SYSTEM_NAMESPACE)}
        return any(holder and any(pod in holder for pod in pods) for holder in holders)

    eventually(held, within=60, describe="a leader among the operator pods")


def test_a_spec_change_rolls_the_pods_once(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    old = {rs["metadata"]["name"] for rs in cluster.list("replicasets", namespace)}
    slo = {"ttftMilliseconds": 60_000, "itlMilliseconds": 10_000}
    cluster.patch_spec(NAME, namespace, {"engine": {"maxModelLen": 1024}, "slo": slo})

    wait_ready(cluster, NAME, namespace)
    eventually(lambda: len(served_pods(cluster, namespace)) == 1, within=PATIENCE)

    new = {rs["metadata"]["name"] for rs in cluster.list("replicasets", namespace)} - old
    (pod,) = served_pods(cluster, namespace)
    assert len(new) == 1
    assert "--max-model-len=1024" in pod["spec"]["containers"][0]["args"]


@pytest.mark.local
def test_a_router_answers_and_streams_while_its_pickers_are_killed(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    service = Routed(cluster, namespace, NAME)
    service.patch(router={"enabled": True})
    service.wait_ready()
    url = service.url()

    pods = service.router_pods()
    addresses = {pod["status"]["podIP"] for pod in pods}
    eventually(lambda: service.selected_addresses() == addresses, within=PATIENCE)
    for pod in pods:
        service.kill(pod, PICKER)
        assert "Paris" in ask(f"{url}/generate", {"prompt": "The capital of France is"})["text"]
        request = {"model": SERVED_MODEL, "prompt": "Once", "max_tokens": 8, "stream": True}
        assert read(f"{url}/v1/completions", request).endswith(b"data: [DONE]\n\n")

    eventually(lambda: all(process_of(pod, PICKER) for pod in pods))
    assert pod_states(service.router_pods()) == pod_states(pods)


def test_the_plugin_of_kubectl_shows_asks_and_measures_the_service(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    def llm(*arguments: str) -> str:
        return cluster.kubectl("llm", *arguments, "--namespace", namespace)

    question = "What is the capital of France?"
    assert "Paris" in llm("chat", NAME, question, "--temperature=0", "--max-tokens=32")

    assert "/v1/chat/completions" in llm("logs", NAME, "--tail=50")

    told = json.loads(llm("status", NAME, "-o", "json"))
    top = json.loads(llm("top", NAME, "-o", "json"))
    assert [each["state"] for each in told["replicas"]] == ["Ready"]
    assert [each["pod"] for each in top["replicas"]] == [each["name"] for each in told["replicas"]]
    (replica,) = top["replicas"]
    assert replica.pop("phase") == "ready"
    # The metrics server needs ten requests before it knows the load.
    assert replica.pop("loadPercent") is not None or "requests" in top["notes"][0]
    assert None not in replica.values(), top
    assert len(top["routers"]) == 2, top
    assert all(each["picksPerSecond"] is not None for each in top["routers"]), top

    load = ("--seconds=2", "--clients=2", "--prompt-words=10", "--max-tokens=8")
    measured = json.loads(llm("bench", NAME, *load, "-o", "json"))
    assert measured["failures"] == 0
    assert measured["requests"] >= 2
    assert measured["ttft"]["p50"] > 0
    assert measured["itl"]["p50"] > 0


@pytest.mark.local
def test_every_query_of_the_chart_returns_data_or_waits_for_a_known_fault(
    cluster: Cluster, namespace: str, served: Object, prometheus: Prometheus
) -> None:
    url = cluster.address_of(NAME, namespace)
    found = queries()
    known = {name for names in silent("queries").values() for name in names}
    assert known - found.keys() == set()

    def no_other_is_quiet() -> bool:
        # The metrics server needs some requests before it knows the load.
        for _ in range(3):
            ask(f"{url}/generate", {"prompt": "Once", "max_tokens": 2})
        awaited = sorted(found.keys() - known)
        quiet = [name for name in awaited if not prometheus.has_answered(found[name])]
        assert quiet == []
        return True

    eventually(no_other_is_quiet, within=PATIENCE, every=5)


@pytest.mark.local
def test_scraped_and_documented_metrics_are_the_same(
    served: Object, prometheus: Prometheus
) -> None:
    assert differences_from_documents(prometheus.series()) == []


@pytest.mark.local
def test_the_tests_of_the_alerts_use_the_labels_of_the_scrape(
    served: Object, prometheus: Prometheus, update_golden: bool
) -> None:
    assert scraped_labels.unknown(prometheus.series(), record=update_golden) == []


def test_deleting_the_llmservice_removes_everything(
    cluster: Cluster, namespace: str, served: Object
) -> None:
    cluster.kubectl("delete", "llm", NAME, "-n", namespace)

    def nothing_left() -> bool:
        kinds = "deployments,replicasets,pods,services,endpointslices"
        left = [o for o in cluster.list(kinds, namespace) if not o["metadata"].get("finalizers")]
        return left == []

    eventually(nothing_left, within=PATIENCE, describe="all children gone")


def test_a_wrong_spec_is_refused_with_what_to_write_instead(
    cluster: Cluster, namespace: str
) -> None:
    service = {
        "apiVersion": "llmservice.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "wrong"},
        "spec": {"model": {"uri": "Qwen/Qwen2.5-7B-Instruct"}},
    }

    with pytest.raises(AssertionError, match="hf://"):
        cluster.apply(service, namespace)
