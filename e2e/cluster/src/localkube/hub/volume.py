"""Put the folder of models into a cluster as a PersistentVolume and a claim bound to it."""

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
            # Never Delete: what lies there is the cache of every cluster on this machine.
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
    # A dot is in no namespace's name, so two pairs never meet in one volume.
    return f"models.{namespace}.{claim}"


def apply_volume(cluster: Cluster, namespace: str, claim: str, folder: Path) -> None:
    """Make the folder readable through the claim; safe to repeat.

    A volume whose earlier claim was deleted keeps that claim's identity and binds to no other, so
    it is made anew.
    """
    name = volume_name(namespace, claim)
    known = cluster.kubectl(
        "get", "pvc", claim, "-n", namespace, "-o", "name", "--ignore-not-found"
    )
    if not known:
        cluster.kubectl("delete", "pv", name, "--ignore-not-found")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(build_volume(namespace, claim, folder)))
    if not known:
        # A claim that is seen before its volume is looked at again only after 15 seconds.
        cluster.kubectl("wait", "pv", name, "--for=jsonpath={.status.phase}=Available")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(build_claim(namespace, claim)))
