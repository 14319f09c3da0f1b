"""Tests the unchanged five-line example: it reports a missing GPU, and runs once a node has one."""

from collections.abc import Iterator

import pytest

from e2e_support import PATIENCE, Cluster, ask, conditions, wait_ready
from shared_support.waiting import eventually
from stage import EXAMPLES, localkube

NAME = "smollm2"

pytestmark = pytest.mark.local


@pytest.fixture(scope="module", autouse=True)
def no_gpus_left(local_cluster_name: str) -> Iterator[None]:
    localkube("gpus", "0", "--name", local_cluster_name)
    yield
    localkube("gpus", "0", "--name", local_cluster_name)


def test_the_example_has_five_lines() -> None:
    lines = (EXAMPLES / "minimal.yaml").read_text().splitlines()

    assert len([line for line in lines if line.strip() and not line.startswith("#")]) == 5


@pytest.mark.causes("WaitingForGPU")
def test_without_a_gpu_the_status_says_so_with_the_schedulers_numbers(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(EXAMPLES / "minimal.yaml", namespace)

    def waiting() -> bool:
        ready = conditions(cluster.read("llm", NAME, namespace)).get("Ready", {})
        assert ready.get("reason") == "WaitingForGPU", ready
        assert "0/1 nodes are available" in ready["message"], ready
        return "nvidia.com/gpu" in ready["message"]

    eventually(waiting, within=PATIENCE, every=1)


def test_with_a_gpu_it_becomes_ready_and_answers(
    cluster: Cluster, namespace: str, local_cluster_name: str
) -> None:
    localkube("gpus", "1", "--name", local_cluster_name)

    wait_ready(cluster, NAME, namespace)

    body = {"model": NAME, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = ask(f"{cluster.address_of(NAME, namespace)}/v1/completions", body)
    assert "Paris" in answer["choices"][0]["text"]
