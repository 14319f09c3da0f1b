"""Makes the folder of models available in a cluster, as a PersistentVolume with a bound claim."""

import json
from pathlib import Path
from typing import Any

from localkube.cluster import Cluster

CAPACITY = "1Gi"
"""Nominal size. Nothing enforces it, but a claim must not request more than its volume has."""


def build_volume(namespace: str, claim: str, folder: Path) -> dict[str, Any]:
    """Return the PersistentVolume that is reserved for this claim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(namespace, claim)},
        "spec": {
            "capacity": {"storage": CAPACITY},
            "accessModes": ["ReadOnlyMany"],
            # The policy is never Delete, because this folder is the cache of every cluster on this
            # machine.
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }


def build_claim(namespace: str, claim: str) -> dict[str, Any]:
    """Return the claim, bound to its volume by name."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": volume_name(namespace, claim),
            "resources": {"requests": {"storage": CAPACITY}},
        },
    }


def volume_name(namespace: str, claim: str) -> str:
    # The name of a namespace contains no dot, so two claims never share the name of a volume.
    return f"models.{namespace}.{claim}"


def apply_volume(cluster: Cluster, namespace: str, claim: str, folder: Path) -> None:
    """Make the folder readable through the claim. The call can be repeated.

    A volume whose claim was deleted keeps the identity of that claim and binds to no other claim,
    so the volume is created again.
    """
    name = volume_name(namespace, claim)
    known = cluster.kubectl(
        "get", "pvc", claim, "-n", namespace, "-o", "name", "--ignore-not-found"
    )
    if not known:
        cluster.kubectl("delete", "pv", name, "--ignore-not-found")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(build_volume(namespace, claim, folder)))
    if not known:
        # If the claim exists before its volume, the controller checks it again only after 15
        # seconds.
        cluster.kubectl("wait", "pv", name, "--for=jsonpath={.status.phase}=Available")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(build_claim(namespace, claim)))
