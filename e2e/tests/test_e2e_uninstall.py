"""Tests that `helm uninstall` removes the operator and keeps its LLMServices running, and that
`helm test` finds an installed operator ready.
"""

from e2e_support import PATIENCE, Cluster, ask, pod_states, wait_ready
from shared_support.waiting import eventually
from stage import (
    RELEASE,
    SYSTEM_NAMESPACE,
    TINY_MODEL,
    Images,
    cpu_service,
    install_chart,
    uninstall_chart,
)

API_SERVICE = ("get", "apiservice", "v1beta1.external.metrics.k8s.io", "--ignore-not-found")


def test_uninstalling_leaves_served_pods_and_the_crd_in_place(
    cluster: Cluster, namespace: str, images: Images, hub: str | None
) -> None:
    name = "survivor"
    cluster.apply(cpu_service(name, f"hf://{TINY_MODEL}"), namespace)
    wait_ready(cluster, name, namespace)
    before = pod_states(cluster.list("pods", namespace))
    url = cluster.address_of(name, namespace)

    assert cluster.kubectl(*API_SERVICE)

    uninstall_chart(cluster)
    cluster.wait_until_no_pods(SYSTEM_NAMESPACE)
    # An APIService without its server would block the deletion of every namespace.
    eventually(lambda: not cluster.kubectl(*API_SERVICE), within=PATIENCE)

    assert cluster.kubectl("get", "crd", "llmservices.llmservice.dev", "-o", "name").strip()
    assert pod_states(cluster.list("pods", namespace)) == before
    body = {"model": name, "prompt": "Hello", "max_tokens": 4}
    assert ask(f"{url}/v1/completions", body)["usage"]["completion_tokens"] == 4

    install_chart(cluster, images, hub)
    wait_ready(cluster, name, namespace)
    assert pod_states(cluster.list("pods", namespace)) == before


def test_helm_test_finds_all_components_ready(cluster: Cluster) -> None:
    said = cluster.run("helm", "test", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--logs")

    assert "Phase:          Succeeded" in said
