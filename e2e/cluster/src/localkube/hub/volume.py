"""Makes the folder of models a PersistentVolume of a cluster, with a claim bound to it."""

import json
from pathlib import Path
from typing import Any

from localkube.cluster import Cluster

CAPACITY = "1Gi"
"""Nominal size: nothing enforces it, but the claim and its volume must agree."""


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
    # No namespace's name contains a dot, so two pairs never share a volume.
    return f"models.{namespace}.{claim}"


def apply_volume(cluster: Cluster, namespace: str, claim: str, folder: Path) -> None:
    """Make the folder readable through the claim; safe to repeat.

    A volume whose earlier claim was deleted keeps that claim's identity and binds to no other, so
    it is created again.
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
