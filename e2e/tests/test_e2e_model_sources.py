"""Where weights come from beside the hub, and what is said when they cannot be had."""

import pytest

from e2e_support import Cluster, ask, conditions, eventually, wait_ready
from stage import TINY_MODEL, cpu_service, localkube


@pytest.mark.local
def test_a_model_on_a_claim_is_served_read_only(
    cluster: Cluster, namespace: str, local_cluster_name: str
) -> None:
    localkube("models", "volume", namespace, "models", "--name", local_cluster_name)
    cluster.apply(cpu_service("on-claim", f"pvc://models/{TINY_MODEL}"), namespace)

    wait_ready(cluster, "on-claim", namespace)

    body = {"model": "on-claim", "prompt": "Hello", "max_tokens": 4}
    url = cluster.address_of("on-claim", namespace)
    assert ask(f"{url}/v1/completions", body)["usage"]["completion_tokens"] == 4
    cluster.kubectl("delete", "llm", "on-claim", "-n", namespace)


def test_an_unknown_model_is_named_in_the_status(cluster: Cluster, namespace: str) -> None:
    cluster.apply(cpu_service("unknown", "hf://nobody/no-such-model"), namespace)

    def says_so() -> bool:
        ready = conditions(cluster.read("llm", "unknown", namespace)).get("Ready", {})
        assert ready.get("reason") == "ModelNotFound", ready
        return "nobody/no-such-model" in ready["message"]

    eventually(says_so, within=120, every=1)
    cluster.kubectl("delete", "llm", "unknown", "-n", namespace)
