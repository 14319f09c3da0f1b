"""`kubectl llm logs`: the logs of a service's replicas or of its router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.kubectl import Kubectl
from llmservice_operator.kubectl_plugin.objects import (
    read_replicas,
    read_router_pods,
    read_service,
)

LIMIT_SECONDS: Final = 120.0
"""Longest time in seconds to print the logs of one pod."""
MOST_PODS: Final = 50
"""Largest number of pods whose logs are followed at the same time."""


class NoLogs(OperatorError):
    """There is no log of the kind that the user asks for."""


@dataclass(frozen=True)
class LogOptions:
    """Choice of logs and of lines."""

    of_router: bool = False
    """Whether the logs are those of the router pods, and not those of the replicas."""
    pod: str | None = None
    """Name of the only pod whose log is printed; None for all pods."""
    previous: bool = False
    """Whether the logs are those of the containers before the last restart."""
    follow: bool = False
    tail: int = 100
    """Number of lines of each pod; -1 for all."""
    since: str | None = None
    """Age of the oldest line, such as 5m."""


def show_logs(kubectl: Kubectl, name: str, options: LogOptions) -> None:
    """Print logs, each line with its pod if there are several pods.

    Raises NoLogs if there is nothing to print, and KubectlFailed.
    """
    read = read_router_pods if options.of_router else read_replicas
    pods = read(kubectl, name)
    if not pods:
        read_service(kubectl, name)
        kind = "router pods" if options.of_router else "replicas"
        raise NoLogs(f"{name} has no {kind}: `kubectl llm status {name}` says why")
    found = [each for each in pods if options.pod in (None, each["metadata"]["name"])]
    if not found:
        known = ", ".join(sorted(each["metadata"]["name"] for each in pods))
        raise NoLogs(f"{name} has no pod {options.pod}: choose one of {known}")
    container = names.ROUTER_CONTAINER if options.of_router else names.SERVER_CONTAINER
    flags = ["--container", container, f"--tail={options.tail}"]
    if options.since is not None:
        flags.append(f"--since={options.since}")
    if options.previous:
        found = [each for each in found if _has_restarted(each, container)]
        if not found:
            raise NoLogs(f"no container {container} of {name} has restarted: omit --previous")
        flags.append("--previous")
    if options.follow:
        label = names.ROUTER_LABEL if options.of_router else names.SERVICE_LABEL
        chosen = [f"pod/{options.pod}"] if options.pod else ["--selector", f"{label}={name}"]
        limits = ["--follow", "--prefix", f"--max-log-requests={MOST_PODS}"]
        kubectl.show("logs", *chosen, *flags, *limits, limit=None)
        return
    if len(found) > 1:
        flags.append("--prefix")
    for pod in found:
        kubectl.show("logs", f"pod/{pod['metadata']['name']}", *flags, limit=LIMIT_SECONDS)


def _has_restarted(pod: Manifest, container: str) -> bool:
    return any(
        each["name"] == container and each.get("restartCount", 0) > 0
        for each in pod.get("status", {}).get("containerStatuses", [])
    )
