"""One replica of a service: the pods that together run one model server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest


def condition(manifest: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return a condition of an object's status. Empty if the object has no condition of that
    type.
    """
    conditions = manifest.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})


def server_of(containers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the model server's entry in a list of containers or of their statuses. Empty if the
    list does not contain one.
    """
    return next((each for each in containers if each["name"] == names.SERVER_CONTAINER), {})


def is_ready(pod: Manifest) -> bool:
    """Return whether the pod is Ready."""
    return condition(pod, "Ready").get("status") == "True"


def is_over(pod: Manifest) -> bool:
    """Return whether the pod's containers have ended for good, such as those of an evicted pod."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


@dataclass(frozen=True)
class Replica:
    """One copy of the model that serves requests. It is as ready as the least ready of its pods."""

    server: Manifest
    """The pod that answers requests, probes and scrapes."""
    revision: str | None
    """Name of the pod template from which the pods were made. None if the pods do not name it."""
    workers: tuple[Manifest, ...] = ()
    """Further pods that hold a part of the model. Empty if one pod holds the whole model."""
    size: int = 1
    """Number of pods that the replica needs in order to serve."""

    @property
    def name(self) -> str:
        """Name of the server's pod."""
        return str(self.server["metadata"]["name"])

    @property
    def pods(self) -> tuple[Manifest, ...]:
        return (self.server, *self.workers)

    @property
    def address(self) -> str | None:
        """Address at which the server can be scraped. None before its pod has an IP address."""
        address: str | None = self.server.get("status", {}).get("podIP")
        return address

    @property
    def created(self) -> datetime:
        """Time at which the first of the pods was created."""
        return min(map(_created, self.pods))

    @property
    def is_ready(self) -> bool:
        return len(self.pods) >= self.size and all(map(is_ready, self.pods))

    @property
    def ready_since(self) -> datetime | None:
        """Time at which the last of the pods became Ready. None while the replica is not ready."""
        if not self.is_ready:
            return None
        changes = [condition(pod, "Ready").get("lastTransitionTime") for pod in self.pods]
        return max((datetime.fromisoformat(each) for each in changes if each), default=None)

    @property
    def scheduled_since(self) -> datetime | None:
        """Time at which the last of the pods was assigned to a node. None while a pod has none."""
        found = [condition(pod, "PodScheduled") for pod in self.pods]
        if len(found) < self.size or any(each.get("status") != "True" for each in found):
            return None
        changes = [each.get("lastTransitionTime") for each in found]
        return max((datetime.fromisoformat(each) for each in changes if each), default=None)

    @property
    def not_ready_since(self) -> datetime | None:
        """Earliest of the times since which the unready pods are not Ready.

        For each pod, this is the last change of its Ready condition, or its creation if it has no
        such condition. None if all existing pods are Ready.
        """
        return min((_not_ready_since(pod) for pod in self.pods if not is_ready(pod)), default=None)

    @property
    def is_leaving(self) -> bool:
        """Whether one of the pods is being deleted. The others cannot serve without it."""
        return any("deletionTimestamp" in pod["metadata"] for pod in self.pods)

    @property
    def serves(self) -> bool:
        return self.is_ready and not self.is_leaving

    @property
    def is_running(self) -> bool:
        """Whether the server's pod is in the phase Running: all of its containers were created."""
        return bool(self.server.get("status", {}).get("phase") == "Running")


def _created(pod: Manifest) -> datetime:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def _not_ready_since(pod: Manifest) -> datetime:
    changed: str | None = condition(pod, "Ready").get("lastTransitionTime")
    return datetime.fromisoformat(changed) if changed else _created(pod)
