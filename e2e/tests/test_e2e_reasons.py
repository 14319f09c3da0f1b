"""Why a service is not ready: each reason by its real cause, all of them at once in one namespace.

Reasons with another cause than the node, the hub or the container are brought about in other tiers;
operator/tests/unit/test_conditions.py says where.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from e2e_support import Cluster, Object, conditions, eventually
from stage import TINY_MODEL, cpu_service

pytestmark = pytest.mark.local

NOWHERE = {"nodeSelector": {"llmservice-test/nowhere": "true"}}

CAUSES: Mapping[str, tuple[dict[str, Any], str, str]] = {
    # name of the service: what is wrong with its spec, the reason, and what the message holds
    "no-image": (
        {"engine": {"image": "registry.invalid/server:1"}},
        "ImagePullError",
        "Correct spec.engine.image",
    ),
    "no-secret": (
        {"model": {"uri": f"hf://{TINY_MODEL}", "credentialsSecretRef": {"name": "absent"}}},
        "SecretMissing",
        'secret "absent" not found',
    ),
    "no-config-map": (
        {"engine": {"chatTemplate": {"configMapKeyRef": {"name": "absent", "key": "template"}}}},
        "ConfigMapMissing",
        'configmap "absent" not found',
    ),
    "no-claim": (
        {"model": {"uri": "pvc://absent/model"}},
        "VolumePending",
        'persistentvolumeclaim "absent" not found',
    ),
    "no-volume": (
        {"model": {"uri": "pvc://unbound/model"}},
        "VolumePending",
        "unbound immediate PersistentVolumeClaims",
    ),
    "no-node": ({"template": NOWHERE}, "Unschedulable", "0/1 nodes are available"),
    "no-memory": (
        {"resources": {"requests": {"cpu": "20m"}, "limits": {"memory": "64Mi"}}},
        "OutOfMemory",
        "Raise spec.resources.limits.memory",
    ),
    "wrong-argument": (
        {"engine": {"extraArgs": ["--kv-cache-memory-bytes=lots"]}},
        "InvalidEngineArgument",
        "--kv-cache-memory-bytes",
    ),
}


def small(name: str, uri: str = f"hf://{TINY_MODEL}", **spec: Any) -> Object:
    """A service that many others have room beside."""
    service = cpu_service(name, uri)
    service["spec"]["resources"] = {"requests": {"cpu": "20m", "memory": "64Mi"}}
    service["spec"].update(spec)
    return service


def ready(cluster: Cluster, name: str, namespace: str) -> Object:
    return conditions(cluster.read("llm", name, namespace)).get("Ready", {})


def until_reason(
    cluster: Cluster, name: str, namespace: str, reason: str, within: float = 120
) -> str:
    """Wait until Ready has the reason; return its message."""

    def has_it() -> str:
        found = ready(cluster, name, namespace)
        assert found.get("reason") == reason, found
        return str(found["message"])

    message: str = eventually(has_it, within=within, every=1)
    return message


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster, namespace: str) -> None:
    """All of them at once: none waits for another."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "unbound"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "none-such",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    made = [small(name, **change) for name, (change, _, _) in CAUSES.items()]
    cluster.apply({"apiVersion": "v1", "kind": "List", "items": [claim, *made]}, namespace)


@pytest.mark.parametrize("name", CAUSES)
def test_the_status_says_what_is_wrong_and_what_to_change(
    cluster: Cluster, namespace: str, name: str
) -> None:
    _, reason, text = CAUSES[name]
    assert text in until_reason(cluster, name, namespace, reason)
    available = conditions(cluster.read("llm", name, namespace))["Available"]
    assert (available["status"], available["reason"]) == ("False", "NoReplicaReady")
    # Its work is done; the processors are for the others.
    cluster.kubectl("delete", "llm", name, "-n", namespace, "--wait=false")
