"""The Deployment that runs a service's model servers."""

from __future__ import annotations

import math
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.environment import build_environment
from llmservice_operator.desired.pin import EnginePin
from llmservice_operator.desired.placement import build_placement, build_pod_metadata
from llmservice_operator.desired.replicas import Replicas
from llmservice_operator.desired.resources import build_resources
from llmservice_operator.desired.rollout import build_strategy
from llmservice_operator.desired.volumes import build_volume_mounts, build_volumes
from llmservice_operator.settings import OperatorSettings

IMAGE_PULL_BUDGET_SECONDS: Final = 20 * 60
"""Longest that scheduling a pod and pulling its image (about 10 GB) may take. A judgement."""

TERMINATION_MARGIN_SECONDS: Final = 15
"""What a drained server gets to free its GPUs and end before it is killed."""

STARTUP_PROBE_PERIOD_SECONDS: Final = 5
"""How late, at worst, a loaded model is noticed; each probe is one cheap request."""

FAILED_PROBE_GRACE_SECONDS: Final = 30
"""What a server gets to end that the kubelet ends for a failed probe.

It finishes no answer any more, so the pod's own time, which is for a drain, would only delay its
restart. Writing why it ended, and giving back its GPUs, takes seconds.
"""

READINESS_PROBE_PERIOD_SECONDS: Final = 5
"""How late, at worst, a replica that is ready again is sent requests."""

REVISION_HISTORY_LIMIT: Final = 3
"""Old ReplicaSets kept for `kubectl rollout undo`-style reading; each is an object to store."""

USER_ID: Final = 10001
"""Any unprivileged user will do: the image runs under every UID."""


def build_deployment_spec(
    service: LLMService, settings: OperatorSettings, pin: EnginePin, replicas: Replicas
) -> dict[str, Any]:
    """Build the spec of the Deployment that runs the service's model servers.

    Raises InvalidSpec when the engine cannot be run as the spec asks.
    """
    return {
        **({} if replicas.sent is None else {"replicas": replicas.sent}),
        "selector": {"matchLabels": names.selector(service)},
        "strategy": build_strategy(service),
        "progressDeadlineSeconds": _progress_deadline(service),
        "revisionHistoryLimit": REVISION_HISTORY_LIMIT,
        "template": {
            "metadata": build_pod_metadata(service),
            "spec": _build_pod_spec(service, settings, pin),
        },
    }


def _progress_deadline(service: LLMService) -> int:
    """Return when a rollout without progress is stuck: never while a pod may still be starting."""
    chosen = service.spec.rollout_strategy.progress_deadline_seconds
    return chosen or service.spec.startup.timeout_seconds + IMAGE_PULL_BUDGET_SECONDS


def _build_pod_spec(
    service: LLMService, settings: OperatorSettings, pin: EnginePin
) -> dict[str, Any]:
    """Build a pod that meets the "restricted" Pod Security Standard."""
    termination = service.spec.termination
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        # Service links would put a *_PORT variable for every Service of the namespace into the
        # environment; for a service called vllm that overrides a setting of the engine.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            # Without this the kubelet would change the owner of every file of a model, each time.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": termination.pre_stop_seconds
        + termination.drain_timeout_seconds
        + TERMINATION_MARGIN_SECONDS,
        "containers": [_build_server_container(service, settings, pin)],
        "volumes": build_volumes(service),
    }
    if service.spec.engine.image_pull_secrets:
        pod_spec["imagePullSecrets"] = [
            {"name": secret.name} for secret in service.spec.engine.image_pull_secrets
        ]
    return pod_spec | build_placement(service)


def _build_server_container(
    service: LLMService, settings: OperatorSettings, pin: EnginePin
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": names.SERVER_CONTAINER,
        "image": pin.image,
        "command": [names.SERVER_COMMAND],
        "args": build_engine_args(service, pin.version),
        "env": build_environment(service, settings),
        "ports": [
            _port(names.API_PORT_NAME, names.API_PORT),
            _port(names.MANAGEMENT_PORT_NAME, names.MANAGEMENT_PORT),
        ],
        **_build_probes(service.spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # A crash that left no message of its own still says its last words in the pod's status,
        # which the operator can read; logs it cannot.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": build_volume_mounts(service),
    }
    if service.spec.engine.image_pull_policy is not None:
        container["imagePullPolicy"] = service.spec.engine.image_pull_policy
    resources = build_resources(service)
    if resources:
        container["resources"] = resources
    return container


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _build_probes(spec: LLMServiceSpec) -> dict[str, Any]:
    ends = {"terminationGracePeriodSeconds": FAILED_PROBE_GRACE_SECONDS}
    failures = math.ceil(spec.startup.timeout_seconds / STARTUP_PROBE_PERIOD_SECONDS)
    # A server that drains says so at once. Where its pod is the only one, or the only one of a node
    # that a load balancer still asks, proxies send it what comes as long as it counts as serving.
    until_gone = math.ceil(spec.termination.pre_stop_seconds / READINESS_PROBE_PERIOD_SECONDS) + 1
    return {
        "startupProbe": ends
        | _probe(names.STARTUP_PROBE_PATH, STARTUP_PROBE_PERIOD_SECONDS, failures),
        # A minute: an engine that only computes hard still lets its server answer, but the server
        # does much else besides, and a restart for a moment's delay would cut every answer.
        "livenessProbe": ends | _probe(names.LIVENESS_PROBE_PATH, 10, failures=6, timeout=10),
        "readinessProbe": _probe(
            names.READINESS_PROBE_PATH, READINESS_PROBE_PERIOD_SECONDS, max(2, until_gone)
        ),
    }


def _probe(path: str, period: int, failures: int, timeout: int = 5) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": names.MANAGEMENT_PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }
