"""The pod that runs a model server: container, probes, security context."""

from __future__ import annotations

import math
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.accelerator import AcceleratorType
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.desired.engine_args import build_engine_args
from llmservice_operator.desired.environment import build_environment
from llmservice_operator.desired.resources import build_resource_claims, build_resources
from llmservice_operator.desired.volumes import build_volume_mounts, build_volumes
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload.pin import EnginePin
from llmservice_operator.workload.placement import build_placement, build_pod_metadata
from llmservice_operator.workload.replica import server_of

TERMINATION_MARGIN_SECONDS: Final = 15
"""Seconds after the drain in which a server can free its GPUs and exit before it is killed."""

STARTUP_PROBE_PERIOD_SECONDS: Final = 5
"""Maximum delay, in seconds, until the kubelet notices a loaded model. Each probe is one cheap
request."""

FAILED_PROBE_GRACE_SECONDS: Final = 30
"""Seconds after which a server that the kubelet stops for a failed probe is killed. Such a server
completes no more answers. The pod's grace period, which allows for a drain, would only delay the
restart. The server needs a few seconds to write its reason and free its GPUs."""

READINESS_PROBE_PERIOD_SECONDS: Final = 5
"""Maximum delay, in seconds, until the kubelet notices that a replica is ready again."""

USER_ID: Final = 10001
"""UID of the server. Any unprivileged user works, because the image runs under every UID."""

RESTRICTED_CONTAINER: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
"""Security context of every container."""


def build_pod_template(
    service: LLMService, settings: OperatorSettings, pin: EnginePin, revision_label: str
) -> dict[str, Any]:
    """Build the template of a pod that runs a model server.

    `revision_label` is the label with which the workload distinguishes its revisions. Raises
    InvalidSpec when the engine cannot be run as the spec requires.
    """
    return {
        "metadata": build_pod_metadata(service),
        "spec": _build_pod_spec(service, settings, pin, revision_label),
    }


def _build_pod_spec(
    service: LLMService, settings: OperatorSettings, pin: EnginePin, revision_label: str
) -> dict[str, Any]:
    """Build a pod that meets the "restricted" Pod Security Standard."""
    termination = service.spec.termination
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        # Service links would set a *_PORT variable for every Service of the namespace. For a
        # service named vllm, that variable overrides a setting of the engine.
        "enableServiceLinks": False,
        "securityContext": _build_security_context(service, settings),
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
    if claims := build_resource_claims(service):
        pod_spec["resourceClaims"] = claims
    return pod_spec | build_placement(service, revision_label)


def _build_security_context(service: LLMService, settings: OperatorSettings) -> dict[str, Any]:
    groups = settings.server_defaults.amd_groups
    is_amd = service.spec.accelerator.type is AcceleratorType.AMD
    return {
        **build_restricted_context(settings),
        # The device files of AMD GPUs belong to groups that each node defines. The device plugin
        # mounts the files without changing their groups.
        **({"supplementalGroups": [*groups]} if is_amd and groups else {}),
        # Without this, the kubelet would change the owner of every file of a model at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
    }


def build_restricted_context(settings: OperatorSettings) -> dict[str, Any]:
    """Build the security context of a pod that runs as any user without privileges."""
    own = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}
    return {
        "runAsNonRoot": True,
        **(own if settings.server_defaults.user_ids == "Fixed" else {}),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def server_image(pod_template: Manifest) -> str | None:
    """Return the image of the model server in the template of a live workload."""
    image: str | None = server_of(pod_template["spec"]["containers"]).get("image")
    return image


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
            build_port(names.API_PORT_NAME, names.API_PORT),
            build_port(names.MANAGEMENT_PORT_NAME, names.MANAGEMENT_PORT),
        ],
        **_build_probes(service.spec),
        "securityContext": RESTRICTED_CONTAINER,
        # After a crash without a termination message, the end of the log is in the pod's status.
        # The operator can read the status, but not the logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": build_volume_mounts(service),
    }
    if service.spec.engine.image_pull_policy is not None:
        container["imagePullPolicy"] = service.spec.engine.image_pull_policy
    resources = build_resources(service)
    if resources:
        container["resources"] = resources
    return container


def build_port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _build_probes(spec: LLMServiceSpec) -> dict[str, Any]:
    ends = {"terminationGracePeriodSeconds": FAILED_PROBE_GRACE_SECONDS}
    failures = math.ceil(spec.startup.timeout_seconds / STARTUP_PROBE_PERIOD_SECONDS)
    return {
        "startupProbe": ends
        | build_probe(names.STARTUP_PROBE_PATH, STARTUP_PROBE_PERIOD_SECONDS, failures),
        "livenessProbe": build_liveness_probe(),
        "readinessProbe": build_readiness_probe(spec),
    }


def build_liveness_probe() -> dict[str, Any]:
    """Build the liveness probe of a pod that serves requests. It fails after one minute.

    Such a pod answers while it serves, but may be delayed on a busy node, and a restart would end
    every request in progress.
    """
    ends = {"terminationGracePeriodSeconds": FAILED_PROBE_GRACE_SECONDS}
    return ends | build_probe(names.LIVENESS_PROBE_PATH, 10, failures=6, timeout=10)


def build_readiness_probe(
    spec: LLMServiceSpec, path: str = names.READINESS_PROBE_PATH
) -> dict[str, Any]:
    """Build the readiness probe. It fails as soon as the server begins to drain."""
    # The server has to count as ready until the end of preStopSeconds. If it is the only pod, or
    # the only pod of a node that a load balancer still uses, proxies continue to send it requests
    # as long as it counts as ready.
    until_gone = math.ceil(spec.termination.pre_stop_seconds / READINESS_PROBE_PERIOD_SECONDS) + 1
    return build_probe(path, READINESS_PROBE_PERIOD_SECONDS, max(2, until_gone))


def build_probe(path: str, period: int, failures: int, timeout: int = 5) -> dict[str, Any]:
    """Build a probe of the management port; times are in seconds."""
    return {
        "httpGet": {"path": path, "port": names.MANAGEMENT_PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }
