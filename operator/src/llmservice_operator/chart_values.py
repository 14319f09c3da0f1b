"""Translates the chart's values into the variables that the chart sets for the operator.

With these variables, the output of `render`, `plan` and `new` is that of the installed operator,
except for values that the chart detects in the cluster. A test compares the variables with those of
the chart's template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

from llmservice_operator.errors import InvalidSettings
from llmservice_operator.settings import PREFIX, OperatorSettings

_REGISTRY: Final = re.compile("^([^/]*[.:][^/]*|localhost)/")
"""Registry of an image reference, as container runtimes recognize it."""

DEFAULTS: Final[Mapping[str, Any]] = {
    "monitoring": {"namespace": "monitoring"},
    "metricsServer": {"enabled": True},
    "keda": {"authentication": {"kind": "ClusterTriggerAuthentication"}},
    "metricsAPI": {"enabled": True},
}
"""Default values of the chart that differ from the defaults of the operator's settings."""

_METRICS_SERVER: Final = "http://llmservice-operator-metrics-server.llmservice-system.svc:8081"
"""Address of the metrics server, with the chart's default names. Of the objects of a service, only
a ScaledObject contains the address."""

_METRICS_SERVER_PODS: Final = "llmservice-operator-metrics-server-pods.llmservice-system.svc"
"""DNS name of the metrics servers, with the chart's default names. Only a router reads it."""


def chart_variables(texts: Iterable[str]) -> dict[str, str]:
    """Return the operator's variables for the texts of values files. A later text has priority.

    Raises InvalidSettings if a text is not a YAML object, or if a value that must be an object is
    not one.
    """
    values: Mapping[str, Any] = DEFAULTS
    for text in texts:
        values = _merged(values, _mapping(text))
    server, monitoring = _part(values, "server"), _part(values, "monitoring")
    metrics, router = _part(values, "metricsServer"), _part(values, "router")
    keda = _part(values, "keda")
    sent = _part(keda, "authentication")
    labels, host = _part(monitoring, "podLabels"), _part(metrics, "hostNetwork")
    mirror, released = _part(values, "global").get("imageRegistry"), OperatorSettings()

    def image(given: str | None, default: str) -> str:
        registry = mirror or (None if given else _part(values, "image").get("registry"))
        reference = given or default
        if not (registry and reference):
            return reference
        return f"{registry}/{_REGISTRY.sub('', reference)}"

    variables = {
        "WATCH_NAMESPACES": ",".join(values.get("watchNamespaces") or ()),
        "SERVER_IMAGE_GPU": image(server.get("gpuImage"), released.images.gpu),
        "SERVER_IMAGE_CPU": image(server.get("cpuImage"), released.images.cpu),
        "SERVER_IMAGE_AMD": image(server.get("amdImage"), released.images.amd),
        "ENGINE_VERSION": server.get("engineVersion"),
        "ROUTER_IMAGE": image(router.get("image"), released.router_image),
        "ROUTER_BY_DEFAULT": str(bool(router.get("enabledByDefault"))).lower(),
        "ACCELERATOR_CLASSES": json.dumps(_part(values, "acceleratorClasses")),
        "SERVER_DEFAULTS": json.dumps(_server_defaults(server, values.get("userIds"))),
        "GPUS_PER_NODE": values.get("gpusPerNode"),
        "HUB_ENDPOINT": _part(values, "model").get("hubEndpoint"),
        "MONITORING_NAMESPACE": monitoring.get("namespace"),
        "MONITORING_POD_LABELS": ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
        "METRICS_API": str(bool(_part(values, "metricsAPI").get("enabled"))).lower(),
        "METRICS_SERVER_CIDRS": ",".join(host.get("cidrs") or ()) if host.get("enabled") else "",
        "KEDA": str(bool(keda.get("enabled"))).lower(),
        "TRIGGER_AUTHENTICATION": f"{sent.get('kind')}/{sent['name']}" if sent.get("name") else "",
        "METRICS_SERVER_URL": _METRICS_SERVER if metrics.get("enabled") else "",
        "METRICS_SERVER_PODS_HOST": _METRICS_SERVER_PODS if metrics.get("enabled") else "",
        "LEASE_SECONDS": values.get("leaseSeconds"),
        "LOG_LEVEL": values.get("logLevel"),
    }
    return {f"{PREFIX}{name}": str(value) for name, value in variables.items() if value is not None}


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InvalidSettings(f"the values are not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise InvalidSettings(
            "the values must be an object with the fields of the chart's values.yaml"
        )
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values merged as Helm does: objects are merged by field, and null removes a
    field.
    """
    found = {key: value for key, value in below.items() if above.get(key, value) is not None}
    for key, value in above.items():
        under = below.get(key)
        if isinstance(value, dict):
            found[key] = _merged(under if isinstance(under, dict) else {}, value)
        elif value is not None:
            found[key] = value
    return found


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise InvalidSettings(f"the chart value {name} must be an object, not {part!r}")
    return part


def _server_defaults(server: Mapping[str, Any], user_ids: str | None) -> dict[str, Any]:
    found = {
        name: server[name]
        for name in ("proxy", "imagePullSecrets", "amdGroups")
        if server.get(name) is not None
    }
    bundle = _part(server, "caBundle")
    if bundle.get("name"):
        source = "secretKeyRef" if bundle.get("kind") == "Secret" else "configMapKeyRef"
        found["caBundle"] = {source: {"name": bundle["name"], "key": bundle.get("key", "ca.crt")}}
    # For Auto, the chart detects the platform in the cluster. The command line does not read the
    # cluster, so the operator's default applies.
    if user_ids not in (None, "Auto"):
        found["userIds"] = user_ids
    return found
