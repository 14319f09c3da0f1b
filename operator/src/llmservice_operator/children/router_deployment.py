"""The Deployment of the router pods. Each pod runs Envoy, a picker and a forwarder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.access import Auth, ClientLimits
from llmservice_operator.api.router import Router
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.applied import applied_field
from llmservice_operator.desired.environment import MEBIBYTE
from llmservice_operator.desired.router import router_drain_seconds, router_grace_seconds
from llmservice_operator.desired.step_prior import prior_of
from llmservice_operator.desired.volumes import OWNER_AND_GROUP_READ, keys_source
from llmservice_operator.kinds import DEPLOYMENTS
from llmservice_operator.router_settings import ClientLimits as RouterClientLimits
from llmservice_operator.router_settings import LimitsOfClients, RouterSettings, StepPrior
from llmservice_operator.workload.deployment import REVISION_HISTORY_LIMIT, REVISION_LABEL
from llmservice_operator.workload.pod_template import (
    FAILED_PROBE_GRACE_SECONDS,
    RESTRICTED_CONTAINER,
    build_liveness_probe,
    build_port,
    build_probe,
    build_readiness_probe,
    build_restricted_context,
)

REQUESTED_CPU: Final = "100m"
REQUESTED_MEMORY: Final = "256Mi"
RUN_SIZE_LIMIT: Final = "32Mi"
"""Maximum size of the files that a router pod writes: configuration, sockets and addresses."""
TMP_SIZE_LIMIT: Final = "64Mi"
PROGRESS_DEADLINE_SECONDS: Final = 600


def _body(context: Context) -> Manifest | None:
    if not context.router.exists:
        return None
    service = context.service
    return {
        "spec": {
            "replicas": context.router.pods,
            "selector": {"matchLabels": names.router_selector(service)},
            # A new pod is ready before an old one ends, so that no request is refused.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
            "revisionHistoryLimit": REVISION_HISTORY_LIMIT,
            "template": {
                "metadata": {"labels": names.router_labels(service)},
                "spec": _pod_spec(context),
            },
        }
    }


def keep_router_pods(manifest: Manifest, live: Manifest) -> Manifest:
    """Return the manifest with the pod template that the operator applied last, if there is one."""
    applied = applied_field(live, "spec")
    if not isinstance(applied, Mapping) or "template" not in applied:
        return manifest
    return {**manifest, "spec": {**manifest["spec"], "template": applied["template"]}}


def _pod_spec(context: Context) -> dict[str, Any]:
    """Build a pod that meets the "restricted" Pod Security Standard."""
    service, settings = context.service, router_settings(context)
    pod: dict[str, Any] = {
        # The router has no rights in the cluster.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": build_restricted_context(context.settings),
        "terminationGracePeriodSeconds": router_grace_seconds(service),
        "containers": [_container(context, settings)],
        "volumes": _volumes(context),
        # A spread constraint keeps the pods apart, as an anti-affinity does. It also counts each
        # revision separately, so that the pods are still apart after a rollout.
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": names.router_selector(service)},
                "matchLabelKeys": [REVISION_LABEL],
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
    }
    if secrets := service.spec.engine.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in secrets]
    # Replicas of a high priority must not preempt the router in front of them.
    if priority := service.spec.template.priority_class_name:
        pod["priorityClassName"] = priority
    return pod


def router_settings(context: Context) -> RouterSettings:
    """Return the settings of the router's processes, except the address of the pod."""
    service, router = context.service, context.service.spec.router_settings
    prior, scaling = prior_of(service.spec), service.spec.autoscaling
    limit = service.spec.objectives.ttft_milliseconds
    mebibytes = service.spec.serving.max_body_mebibytes
    settings = RouterSettings(
        namespace=service.namespace,
        service=service.name,
        replicas_host=names.host(service, names.replica_addresses(service)),
        pickers_host=names.host(service, names.router(service)),
        metrics_servers_host=context.settings.metrics_server_pods_host,
        step_prior=StepPrior(
            fixed=prior.fixed, prefill=prior.prefill, sequence=prior.sequence, kv=prior.kv
        ),
        client_port=names.API_PORT,
        management_port=names.MANAGEMENT_PORT,
        picker_port=names.ROUTER_PICKER_PORT,
        gateway_port=names.ROUTER_GATEWAY_PORT if context.router.has_pool else None,
        api_keys_directory=None if service.spec.auth is None else Path(names.API_KEYS_PATH),
        client_limits=_client_limits(service.spec.auth),
        tls_directory=None if service.spec.service.tls is None else Path(names.TLS_PATH),
        max_held_requests=router.max_held_requests,
        hold_timeout_seconds=router.hold_timeout_seconds,
        scales_to_zero=scaling is not None and scaling.scales_to_zero,
        heartbeat_seconds=router.heartbeat_seconds,
        policy=router.policy,
        ttft_limit_seconds=None if limit is None else limit / 1000,
        drain_seconds=service.spec.termination.pre_stop_seconds,
        drain_timeout_seconds=router_drain_seconds(service),
    )
    if mebibytes is None:
        return settings
    return settings.model_copy(update={"max_body_bytes": mebibytes * MEBIBYTE})


def _client_limits(auth: Auth | None) -> LimitsOfClients | None:
    if auth is None or auth.limits is None:
        return None
    limits = auth.limits
    return LimitsOfClients(
        default=_limits_of(limits),
        keys={each.name: _limits_of(limits.of_key(each)) for each in limits.keys},
    )


def _limits_of(limits: ClientLimits) -> RouterClientLimits:
    return RouterClientLimits(
        requests=limits.requests_per_minute,
        tokens=limits.tokens_per_minute,
        concurrent=limits.concurrent_requests,
    )


def _container(context: Context, settings: RouterSettings) -> dict[str, Any]:
    service = context.service
    address = {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}
    mounts: list[dict[str, Any]] = [
        {"name": names.RUN_VOLUME, "mountPath": names.RUN_PATH},
        {"name": names.TMP_VOLUME, "mountPath": names.TMP_PATH},
    ]
    if service.spec.auth is not None:
        mounts.append(
            {"name": names.API_KEYS_VOLUME, "mountPath": names.API_KEYS_PATH, "readOnly": True}
        )
    if service.spec.service.tls is not None:
        mounts.append({"name": names.TLS_VOLUME, "mountPath": names.TLS_PATH, "readOnly": True})
    ends = {"terminationGracePeriodSeconds": FAILED_PROBE_GRACE_SECONDS}
    return {
        "name": names.ROUTER_CONTAINER,
        "image": service.spec.router_settings.image or context.settings.router_image,
        "command": [*names.ROUTER_COMMAND],
        "env": [
            {"name": names.ROUTER_POD_ADDRESS_ENV, "valueFrom": address},
            *(
                {"name": name, "value": value}
                for name, value in sorted(settings.environment().items())
            ),
        ],
        "ports": [
            build_port(names.GATEWAY_PORT_NAME, names.ROUTER_GATEWAY_PORT)
            if context.router.has_pool
            else build_port(names.API_PORT_NAME, names.API_PORT),
            build_port(names.MANAGEMENT_PORT_NAME, names.MANAGEMENT_PORT),
            build_port(names.PICKER_PORT_NAME, names.ROUTER_PICKER_PORT),
        ],
        # On a busy node, the start may take minutes, and a restart would begin it again.
        "startupProbe": ends | build_probe(names.LIVENESS_PROBE_PATH, 2, failures=150),
        "livenessProbe": build_liveness_probe(),
        "readinessProbe": build_readiness_probe(
            service.spec,
            names.GATEWAY_READINESS_PROBE_PATH
            if context.router.has_pool
            else names.READINESS_PROBE_PATH,
        ),
        "securityContext": RESTRICTED_CONTAINER,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": _resources(service.spec.router_settings),
        "volumeMounts": mounts,
    }


def _volumes(context: Context) -> list[dict[str, Any]]:
    spec = context.service.spec
    volumes: list[dict[str, Any]] = [
        {
            "name": names.RUN_VOLUME,
            "emptyDir": {"medium": "Memory", "sizeLimit": RUN_SIZE_LIMIT},
        },
        {"name": names.TMP_VOLUME, "emptyDir": {"sizeLimit": TMP_SIZE_LIMIT}},
    ]
    if spec.auth is not None:
        keys = keys_source(spec.auth.api_keys_secret_ref)
        volumes.append({"name": names.API_KEYS_VOLUME, "secret": keys})
    if spec.service.tls is not None:
        # The Secret is mounted as a whole, so the kubelet updates the files when it changes.
        certificate = {
            "secretName": spec.service.tls.secret_name,
            "defaultMode": OWNER_AND_GROUP_READ,
        }
        volumes.append({"name": names.TLS_VOLUME, "secret": certificate})
    return volumes


def _resources(router: Router) -> dict[str, dict[str, str]]:
    """Return the requests and limits.

    If the spec has a limit but no request, Kubernetes uses the limit as the request.
    """
    requests, limits = _amounts(router.resources.requests), _amounts(router.resources.limits)
    defaults = {"cpu": REQUESTED_CPU, "memory": REQUESTED_MEMORY}
    requests = {name: it for name, it in defaults.items() if name not in limits} | requests
    return {"requests": requests, "limits": {"memory": router.memory_limit} | limits}


def _amounts(amounts: Any) -> dict[str, str]:
    return {} if amounts is None else amounts.model_dump(exclude_none=True)


CHILD: Final = Child(kind=DEPLOYMENTS, body=_body, name=names.router, is_pruned=True)
