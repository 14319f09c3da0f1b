"""Tests the sources of weights other than the hub, and the messages when weights are
unavailable.
"""

from pathlib import Path

import pytest

from e2e_support import Cluster, ask, until_reason, wait_ready
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


@pytest.mark.local
def test_two_replicas_fill_one_claim_and_leave_it_when_they_go(
    cluster: Cluster, namespace: str, local_cluster_name: str, tmp_path: Path
) -> None:
    folder, name = tmp_path / "claim", f"cache-{local_cluster_name}"
    folder.mkdir()
    # The kubelet does not apply fsGroup to a hostPath volume, so every user must have the right
    # to write here.
    folder.chmod(0o777)
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": name,
        "hostPath": {"path": str(folder), "type": "Directory"},
    }
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}}
    cluster.apply({**volume, "spec": spec}, namespace)
    service = cpu_service("cached", f"hf://{TINY_MODEL}")
    service["spec"]["replicas"] = 2
    service["spec"]["model"]["cache"] = {
        "type": "PersistentVolumeClaim",
        "size": "1Gi",
        "storageClassName": name,
    }
    cluster.apply(service, namespace)

    wait_ready(cluster, "cached", namespace)

    repository = f"models--{TINY_MODEL.replace('/', '--')}"
    assert not list((folder / "hub" / repository / "blobs").glob("*.incomplete"))
    assert list((folder / "hub" / repository / "snapshots").rglob("*.safetensors"))
    (turn,) = (folder / "locks" / repository).iterdir()
    assert turn.suffix == ".ended"
    (marker,) = (folder / "compile" / "cached").glob("compiled-*")
    assert marker.exists()
    cluster.kubectl("delete", "llm", "cached", "-n", namespace)
    cluster.wait_until_no_pods(namespace)
    claim = cluster.read("pvc", "cached-cache", namespace)
    assert claim is not None
    assert claim["status"]["phase"] == "Bound"
    cluster.kubectl("delete", "pvc", "cached-cache", "-n", namespace)
    cluster.kubectl("delete", "pv", name)


@pytest.mark.causes("ModelNotFound")
def test_an_unknown_model_is_named_in_the_status(cluster: Cluster, namespace: str) -> None:
    cluster.apply(cpu_service("unknown", "hf://nobody/no-such-model"), namespace)

    message = until_reason(cluster, "unknown", namespace, "ModelNotFound")
    assert "nobody/no-such-model" in message
    cluster.kubectl("delete", "llm", "unknown", "-n", namespace)
