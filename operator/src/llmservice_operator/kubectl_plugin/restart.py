"""`kubectl llm restart`: replaces all replicas of a service, in the order of its rolloutStrategy.

It uses `kubectl rollout restart`. The operator keeps the annotation that this command sets, and
handles the new pods like those of any other rollout.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from llmservice_operator import api
from llmservice_operator.api import Manifest
from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed
from llmservice_operator.kubectl_plugin.objects import SERVICES, read_service
from llmservice_operator.kubectl_plugin.screen import console_for, printable

POLL_SECONDS: Final = 2.0
FAILURES: Final = 5
"""Number of polls in a row that may fail. A control plane may be away for some seconds."""


class NotRestarted(OperatorError):
    """The replicas are not restarted, or not within the time limit."""


@dataclass(frozen=True)
class Turn:
    """Progress of a rollout."""

    desired: int
    updated: int
    """Replicas of the new revision."""
    available: int
    """Replicas of any revision that serve requests."""
    is_complete: bool
    is_stuck: bool

    @classmethod
    def of(cls, deployment: Manifest) -> Turn:
        """Return the progress of a Deployment's rollout."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        status = deployment.get("status", {})
        desired, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
        available = status.get("availableReplicas", 0)
        is_seen = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
        conditions = {each["type"]: each for each in status.get("conditions", [])}
        progressing = conditions.get("Progressing", {}).get("reason")
        return cls(
            desired,
            updated if is_seen else 0,
            available,
            is_seen and updated >= desired and status.get("replicas", 0) == updated <= available,
            is_seen and progressing == "ProgressDeadlineExceeded",
        )

    @property
    def text(self) -> str:
        return f"{self.updated} of {self.desired} replicas new, {self.available} serving"


def restart(
    kubectl: Kubectl, name: str, *, wait_seconds: float, force: bool, allow_downtime: bool
) -> None:
    """Restart all replicas, and wait for the end. With `wait_seconds` 0, do not wait.

    `force` restarts also during a rollout. `allow_downtime` restarts also if no replica serves
    requests for some time.

    Raises NotRestarted and KubectlFailed.
    """
    service = read_service(kubectl, name)
    deployment = kubectl.read("deployments.apps", name)
    check_restart(service, deployment, force=force, allow_downtime=allow_downtime)
    kubectl.run("rollout", "restart", f"deployment/{name}")
    replicas = deployment["spec"].get("replicas", 1)
    print(f"{name} restarts {replicas} replica{'' if replicas == 1 else 's'}", flush=True)
    if wait_seconds > 0:
        _wait(kubectl, name, wait_seconds)


def check_restart(
    service: Manifest, deployment: Manifest, *, force: bool, allow_downtime: bool
) -> None:
    """Raise NotRestarted if a restart has no effect, or may harm."""
    name, spec, status = service["metadata"]["name"], deployment["spec"], service.get("status", {})
    owners = deployment["metadata"].get("ownerReferences", [])
    uid = service["metadata"]["uid"]
    if not any(each.get("kind") == api.KIND and each.get("uid") == uid for each in owners):
        raise NotRestarted(f"the Deployment {name} does not belong to the LLMService {name}")
    if spec.get("replicas", 1) == 0:
        raise NotRestarted(f"{name} has no replicas, so there is nothing to restart")
    if spec.get("paused"):
        raise NotRestarted(
            f"the Deployment {name} is paused: run `kubectl rollout resume deployment/{name}` first"
        )
    if status.get("rollback") is not None:
        raise NotRestarted(
            f"{name} runs the pods of an earlier spec after a failed rollout: correct the spec, "
            f"which `kubectl llm status {name}` explains"
        )
    if not force and not Turn.of(deployment).is_complete:
        raise NotRestarted(
            f"a rollout of {name} is in progress, or replicas are not ready: see `kubectl llm "
            f"status {name}`, and pass --force to restart them all the same"
        )
    if not allow_downtime and _interrupts(spec):
        raise NotRestarted(
            f"the rolloutStrategy of {name} terminates all replicas before a new one is ready: "
            "pass --allow-downtime, or set rolloutStrategy.type to RollingUpdate"
        )


def _interrupts(spec: Manifest) -> bool:
    """Return whether the rollout of a Deployment may end all replicas before a new one is ready."""
    strategy = spec.get("strategy", {})
    if strategy.get("type") == "Recreate":
        return True
    unavailable = strategy.get("rollingUpdate", {}).get("maxUnavailable", 0)
    replicas: int = spec.get("replicas", 1)
    return _number(unavailable, replicas) >= replicas


def _number(portion: Any, replicas: int) -> int:
    """Return a number of replicas from a number or a percentage, which is rounded down."""
    text = str(portion)
    return int(text[:-1]) * replicas // 100 if text.endswith("%") else int(text)


def _wait(kubectl: Kubectl, name: str, seconds: float) -> None:
    console = console_for()
    pause, end, failures = threading.Event(), time.monotonic() + seconds, 0
    said = ""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        while time.monotonic() < end:
            try:
                turn = Turn.of(kubectl.read("deployments.apps", name))
                reason = _reason(kubectl, name)
                failures = 0
            except KubectlFailed:
                failures += 1
                if failures > FAILURES:
                    raise
                pause.wait(POLL_SECONDS)
                continue
            line = turn.text + ("" if turn.is_complete else f" ({reason})")
            progress.update(
                task, description=line, completed=turn.updated, total=max(1, turn.desired)
            )
            if line != said and not console.is_terminal:
                print(line, flush=True)
            said = line
            if turn.is_complete:
                return
            if turn.is_stuck:
                raise NotRestarted(
                    f"the restart makes no progress: `kubectl llm status {name}` says why. `kubectl"
                    f" rollout undo deployment/{name}` does not help, because the pods are the same"
                )
            pause.wait(POLL_SECONDS)
    raise NotRestarted(
        f"the restart has not ended within {seconds:g} s: it goes on, and `kubectl llm status "
        f"{name}` shows how"
    )


def _reason(kubectl: Kubectl, name: str) -> str:
    """Return the reason of the condition Ready."""
    path = "{.status.conditions[?(@.type=='Ready')].reason}"
    return printable(kubectl.run("get", SERVICES, name, "-o", f"jsonpath={path}"))
