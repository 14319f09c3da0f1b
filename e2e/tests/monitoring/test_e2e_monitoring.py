"""Causes faults on a full cluster: alerts speak, and panels show what they lack in a healthy one.

The faults and the queries that wait for them are in e2e/silent.yaml. `make test-monitoring` runs
these tests.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from chart_support import scraped_labels
from e2e_support import PATIENCE, Cluster
from faults import OPERATORS, Scene
from monitoring import Prometheus, queries, silent, start_prometheus
from routed import METRICS_SERVERS
from shared_support.waiting import eventually
from stage import Images, install_chart

pytestmark = pytest.mark.local

SPEC = {
    "accelerator": {"class": "priced", "count": 1},
    "autoscaling": {"minReplicas": 1, "maxReplicas": 1},
    # No request meets this SLO.
    "slo": {"ttftMilliseconds": 1},
    "engine": {
        "dtype": "Float32",
        "maxModelLen": 512,
        "batching": {"maxNumSeqs": 2, "maxQueuedRequests": 4},
        "speculativeDecoding": {
            "method": "Ngram",
            "numSpeculativeTokens": 2,
            "ngram": {"promptLookupMin": 1, "promptLookupMax": 2},
        },
    },
    "rolloutStrategy": {"progressDeadlineSeconds": 60},
    "termination": {"drainTimeoutSeconds": 30},
}


@pytest.fixture(scope="module")
def scene(
    cluster: Cluster, images: Images, hub: str | None, namespace: str, local_cluster_name: str
) -> Scene:
    """Return a service to which every part of the chart's monitoring applies but GPU metrics."""
    classes = json.dumps({"priced": {"pricePerHour": 2.5}})
    install_chart(cluster, images, hub, f"--set-json=acceleratorClasses={classes}")
    found = Scene(cluster, local_cluster_name, namespace, "busy")
    found.set_gpus(1)
    found.apply(SPEC)
    found.wait_ready()
    return found


@pytest.fixture(scope="module")
def prometheus(
    local_cluster_name: str, scene: Scene, tmp_path_factory: pytest.TempPathFactory
) -> Prometheus:
    """Return a Prometheus that scrapes the cluster, in which the service is ready."""
    return start_prometheus(local_cluster_name, tmp_path_factory.mktemp("prometheus"))


Fault = Callable[[Scene], AbstractContextManager[None]]

FAULTS: dict[str, Fault] = {
    "GPUs, a price, API keys, autoscaling and speculative decoding": Scene.served,
    "more load than the replicas bear, and no request within the SLO": Scene.loaded,
    "no metrics server runs": lambda scene: scene.without(METRICS_SERVERS),
    "nothing is behind the Service object of the metrics servers": Scene.unreachable_metrics_api,
    "no operator runs": lambda scene: scene.without(OPERATORS),
    "all operators were killed": Scene.without_a_leader,
    "no node has room for the only replica": Scene.without_a_gpu,
    "a model server was killed three times": Scene.restarted,
    "the image of a rollout does not exist": Scene.rolled_out_without_an_image,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gives_data_to_the_queries_that_wait_for_it(
    scene: Scene, prometheus: Prometheus, fault: str
) -> None:
    awaited = {name: queries()[name] for name in silent("queries")[fault]}
    alerts = {name: query for name, query in awaited.items() if name.startswith("LLMService")}
    metrics = silent("metrics").get(fault, [])
    began = time.time()

    with FAULTS[fault](scene):
        for name, query in (*awaited.items(), *zip(metrics, metrics, strict=True)):
            assert_answers(prometheus, name, query, began)
        for name in alerts:
            assert_answers(prometheus, name, f'ALERTS{{alertname="{name}"}}', began)
    for name, query in alerts.items():
        if not looks_back(query):
            assert_ends(prometheus, name, query)


def test_the_tests_of_the_alerts_use_the_labels_of_the_scrape(
    prometheus: Prometheus, update_golden: bool
) -> None:
    assert scraped_labels.unknown(prometheus.series(), record=update_golden) == []


def looks_back(query: str) -> bool:
    """Return whether an alert stays for minutes because its query contains older values."""
    return "[" in query or "llmservice:" in query


def assert_answers(prometheus: Prometheus, name: str, query: str, since: float) -> None:
    eventually(
        lambda: prometheus.has_answered(query, since),
        within=PATIENCE,
        every=2,
        describe=f"{name} returns data",
    )


def assert_ends(prometheus: Prometheus, name: str, query: str) -> None:
    eventually(
        lambda: not prometheus.answers(query),
        within=PATIENCE,
        every=2,
        describe=f"{name} ends",
    )
