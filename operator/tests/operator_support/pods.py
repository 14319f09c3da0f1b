"""Pods as the kubelet, the scheduler and the node controller leave them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import timestamp
from operator_support.services import NOW, a_pod

RUNNING: Mapping[str, Any] = {"running": {"startedAt": "2026-01-02T03:00:00Z"}}
FULL_CACHE = 'Usage of EmptyDir volume "cache" exceeds the limit "20Gi".'


def ago(seconds: float) -> str:
    return timestamp(NOW - timedelta(seconds=seconds))


def a_failed_pod(reason: str, message: str, *, seconds: float = 30, **fields: Any) -> Manifest:
    pod = a_pod(created=ago(seconds), changed=ago(seconds), **fields)
    pod["status"] = {**pod["status"], "phase": "Failed", "reason": reason, "message": message}
    pod["status"]["conditions"][0]["lastTransitionTime"] = ago(seconds)
    pod["metadata"]["name"] = f"qwen-failed-{reason}".lower()
    pod["spec"]["nodeName"] = "node-7"
    return pod


def an_unstarted_pod(seconds: float, *, acknowledged: bool = True, **fields: Any) -> Manifest:
    state = {"waiting": {"reason": "ContainerCreating"}}
    pod = a_pod(state if acknowledged else None, created=ago(seconds), **fields)
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds)}
    pod["status"]["conditions"].append(scheduled)
    if acknowledged:
        pod["status"]["startTime"] = ago(seconds)
    pod["spec"]["nodeName"] = "node-7"
    return pod


def beside(ready: bool = True, reason: str = "", **status: Any) -> Manifest:
    """Return a pod that is not Ready, although its model server has started.

    `ready` says whether the container of the model server is ready.
    """
    pod = a_pod(RUNNING, started=True, changed="2026-01-02T03:01:00Z")
    pod["status"]["containerStatuses"][0]["ready"] = ready
    pod["status"]["conditions"][0]["reason"] = reason
    pod["status"]["containerStatuses"] += status.pop("others", [])
    pod["status"].update(status)
    pod["spec"]["nodeName"] = "node-7"
    return pod


def an_old_pod(gpus: str = "1", **requests: str) -> Manifest:
    pod = a_pod(RUNNING, ready=True, template="old", created=ago(9999))
    asked = {"nvidia.com/gpu": gpus, **requests}
    pod["spec"]["containers"][0]["resources"] = {"requests": asked, "limits": asked}
    return pod
