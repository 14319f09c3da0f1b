"""The settings of the operator, the metrics server and the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from llmservice_operator.api.accelerator import MAX_GPUS
from llmservice_operator.api.accelerator_class import AcceleratorClass, parse_classes
from llmservice_operator.api.labels import KEY_FORM, KEY_LENGTH, VALUE_FORM
from llmservice_operator.api.references import NAMESPACE_FORM
from llmservice_operator.api.server_defaults import ServerDefaults, parse_server_defaults
from llmservice_operator.errors import InvalidSettings
from llmservice_operator.process_settings import (
    Host,
    LogLevel,
    Namespace,
    ObjectName,
    Port,
    ProcessSettings,
    Settings,
    from_text,
    named,
    wrong,
)

PREFIX = "LLMSERVICE_OPERATOR_"
"""Prefix of the environment variables of the operator and the metrics server. A variable is named
PREFIX + NAME."""

ENGINE_VERSION = "0.32.0"
"""vLLM version inside the server images released with this operator."""


VALUES = {
    "WATCH_NAMESPACES": "watchNamespaces",
    "ACCELERATOR_CLASSES": "acceleratorClasses",
    "SERVER_DEFAULTS": "server",
    "ROUTER_BY_DEFAULT": "router.enabledByDefault",
    "GPUS_PER_NODE": "gpusPerNode",
    "HUB_ENDPOINT": "model.hubEndpoint",
    "MONITORING_NAMESPACE": "monitoring.namespace",
    "MONITORING_POD_LABELS": "monitoring.podLabels",
    "KEDA": "keda.enabled",
    "TRIGGER_AUTHENTICATION": "keda.authentication",
    "KEDA_READER": "keda.authentication.serviceAccount",
    "METRICS_API": "metricsAPI.enabled",
    "METRICS_SERVER_CIDRS": "metricsServer.hostNetwork.cidrs",
    "LEASE_SECONDS": "leaseSeconds",
    "LOG_LEVEL": "logLevel",
    "EXTERNAL_METRICS_PORT": "metricsServer.port",
}
"""Chart values, by the names of the variables to which the chart copies them unchecked."""


def _released(image: str) -> str:
    # Nobody can own a name below .invalid (RFC 2606). The chart sets the real registry.
    return f"registry.invalid/llmservice/{image}:{version('llmservice-operator')}"


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not all(key and separator for key, separator, _ in pairs):
        raise ValueError("a pair is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _valid_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in labels.items():
        if len(key) > KEY_LENGTH or not KEY_FORM.fullmatch(key):
            raise wrong(f"{key!r} is no label key, such as app.kubernetes.io/name")
        if len(value) > 63 or not VALUE_FORM.fullmatch(value):
            raise wrong(f"{value!r} is no label value, such as prometheus")
    return labels


def _valid_ranges(ranges: tuple[str, ...]) -> tuple[str, ...]:
    for each in ranges:
        try:
            ip_network(each)
        except ValueError as error:
            raise wrong(str(error)) from error
    return ranges


def _reachable(address: str | None) -> str | None:
    """Return the address unchanged.

    Raises PydanticCustomError if its host or port is not valid, because neither a request nor a
    rule of a NetworkPolicy could use such an address.
    """
    if address is None:
        return None
    try:
        host = urlsplit(address).hostname
    except ValueError:
        host = None
    if host is None or not _HOST.fullmatch(host):
        raise wrong("it has no valid host")
    try:
        port = urlsplit(address).port
    except ValueError:
        port = 0
    if port == 0:
        raise wrong("its port is no number from 1 to 65535")
    return address


def _from_json(name: str, parse: Callable[[str, str], Any]) -> BeforeValidator:
    """Return a validator that parses the text of a variable with `parse`.

    The arguments of `parse` are the text and the full name of the variable.
    """

    def read(text: str) -> Any:
        try:
            return parse(text, f"{PREFIX}{name}")
        except InvalidSettings as error:
            raise PydanticCustomError("json_setting", "{said}", {"said": str(error)}) from error

    return from_text(read)


_HOST = re.compile("[A-Za-z0-9._:-]+")
_NAMESPACE, _NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?", "[a-z0-9]([-.a-z0-9]*[a-z0-9])?"

Address = Annotated[
    str | None,
    Field(pattern=r"^https?://", description="an address that starts with http:// or https://"),
    AfterValidator(_reachable),
]
Switch = Annotated[
    bool,
    from_text(lambda text: {"true": True, "false": False}.get(text.lower())),
    Field(description="true or false"),
]
Names = Annotated[
    tuple[str, ...],
    from_text(lambda text: tuple(name for it in text.split(",") if (name := it.strip()))),
    AfterValidator(lambda names: tuple(map(named(NAMESPACE_FORM), names))),
    Field(description="names of namespaces, separated by commas"),
]
Ranges = Annotated[
    tuple[str, ...],
    from_text(lambda text: tuple(each.strip() for each in text.split(",") if each.strip())),
    AfterValidator(_valid_ranges),
    Field(description="ranges of addresses, such as 10.0.0.0/16, separated by commas"),
]
Accounts = Annotated[
    tuple[Annotated[str, Field(pattern=f"^{_NAMESPACE}/{_NAME}$")], ...],
    from_text(lambda text: tuple(each.strip() for each in text.split(",") if each.strip())),
    Field(description="NAMESPACE/NAME of ServiceAccounts, separated by commas"),
]
Labels = Annotated[
    Mapping[str, str],
    from_text(_labels),
    AfterValidator(_valid_labels),
    Field(description="KEY=VALUE,KEY=VALUE"),
]


class ServerImages(Settings):
    """Default model server images.

    An LLMService keeps the first image with which a replica became ready, until the spec requires
    another image.
    """

    prefix = PREFIX
    gpu: str = Field(
        default_factory=lambda: _released("server-gpu"), validation_alias="SERVER_IMAGE_GPU"
    )
    cpu: str = Field(
        default_factory=lambda: _released("server-cpu"), validation_alias="SERVER_IMAGE_CPU"
    )
    amd: str = Field("", validation_alias="SERVER_IMAGE_AMD")
    """Image for AMD GPUs. If it is empty, a service on AMD GPUs must name an image."""
    engine_version: str = ENGINE_VERSION
    """vLLM version in all images."""


class MetricsServerSettings(Settings):
    """Settings that only the metrics server reads."""

    prefix = PREFIX
    external_port: Port = Field(8443, validation_alias="EXTERNAL_METRICS_PORT")
    """Port of external.metrics.k8s.io. Only the API server uses it."""
    scaling_port: Port = 8081
    """Port of the load reports as JSON."""
    service_name: str = Field(
        "llmservice-operator-metrics-server", validation_alias="METRICS_SERVICE_NAME"
    )
    """Service object in the operator's namespace through which the API server reaches the metrics
    server."""
    service_port: Port = Field(443, validation_alias="METRICS_SERVICE_PORT")
    owner_role: str = "llmservice-operator-metrics-server"
    """ClusterRole that owns the APIService, so that both are deleted together."""
    pod_address: str = "127.0.0.1"
    """Address at which the other metrics servers reach this process."""
    drain_seconds: int = Field(5, ge=0, le=3600, description="a whole number up to 3600")
    """Time in seconds that the server keeps responding after SIGTERM, until the cluster has stopped
    routing clients to it."""
    report_readers: Accounts = ()
    """ServiceAccounts of the operator and the metrics servers. Only these may read all load
    reports; if there are none, every caller may."""
    operator_lease_name: ObjectName | None = Field(None, description="the name of an object")
    """Lease of the operators in the namespace of the metrics server. It says whether the leading
    operator sends a token. None if all operators do."""
    keda_reader: str | None = Field(
        None, pattern=f"^({_NAMESPACE}/)?{_NAME}$", description="NAME or NAMESPACE/NAME"
    )
    """ServiceAccount whose token KEDA sends to read a single load report. Without a namespace, it
    is the one in the namespace of the service. None if KEDA sends no token."""


class OperatorSettings(ProcessSettings):
    prefix = PREFIX
    groups: ClassVar[Mapping[str, type[Settings]]] = {
        "images": ServerImages,
        "metrics_server": MetricsServerSettings,
    }
    advice: ClassVar[Mapping[str, str]] = {
        f"{PREFIX}{name}": f" (chart value {value})" for name, value in VALUES.items()
    }
    images: ServerImages = Field(default_factory=ServerImages)
    hub_endpoint: Address = None
    """Address of a Hugging Face hub or mirror; None means the public hub."""
    accelerator_classes: Annotated[
        Mapping[str, AcceleratorClass], _from_json("ACCELERATOR_CLASSES", parse_classes)
    ] = Field(default_factory=dict)
    """Accelerator classes, by their names in spec.accelerator.class."""
    server_defaults: Annotated[
        ServerDefaults, _from_json("SERVER_DEFAULTS", parse_server_defaults)
    ] = Field(default_factory=ServerDefaults)
    """Defaults of the model servers of all services."""
    router_image: str = Field(default_factory=lambda: _released("router"))
    """Image of the router pods, for services that name none."""
    router_by_default: Switch = False
    """Whether a service that may have more than one replica has a router, if its spec does not
    say."""
    gpus_per_node: int = Field(
        8, ge=1, le=MAX_GPUS, description=f"a whole number from 1 to {MAX_GPUS}"
    )
    """Number of GPUs of the largest node, for services whose accelerator class sets none."""
    watch_namespaces: Names = ()
    """Namespaces whose LLMServices are served; empty means all."""
    metrics_api: Switch = True
    """Whether the metrics server serves external.metrics.k8s.io, if the operator serves all
    namespaces."""
    namespace: Namespace = "llmservice-system"
    """Namespace in which the operator runs and keeps its Lease."""
    monitoring_namespace: Namespace | None = Field(None, description="the name of a namespace")
    """Namespace whose pods may read the metrics of model servers; None means no namespace."""
    monitoring_pod_labels: Labels = Field(default_factory=dict)
    """Labels of the pods that may read the metrics; empty means all pods of the monitoring
    namespace."""
    lease_name: ObjectName = "llmservice-operator"
    lease_seconds: int = Field(15, ge=15, le=600, description="a whole number from 15 to 600")
    """Time in seconds after which another process may take a Lease that is not renewed. A longer
    time suits an API server that answers slowly. A crashed leader is then replaced later."""
    keda: Switch = False
    """Whether the operator has the rights to write KEDA's ScaledObjects."""
    trigger_authentication: str | None = Field(
        None,
        pattern=f"^(Cluster)?TriggerAuthentication/{_NAME}$",
        description="KIND/NAME, such as ClusterTriggerAuthentication/load-reports",
    )
    """Object with the token that KEDA sends to the metrics server; None if it sends none."""
    health_port: Port = 8080
    """Port of /livez, /readyz and /metrics."""
    log_level: LogLevel = "INFO"
    audit_period_seconds: int = Field(300, ge=1, description="a whole number from 1")
    """Time in seconds between two comparisons of the watched objects with the cluster. It varies at
    random by up to 20 %."""
    metrics_server_url: Address = None
    """Address of the metrics server, without a path; None if there is no metrics server."""
    metrics_server_pods_host: Host | None = Field(None, description="a DNS name")
    """DNS name of a headless Service object with the addresses of the metrics servers; None if
    there is no metrics server."""
    metrics_server_cidrs: Ranges = ()
    """Ranges of the addresses from which metrics servers on the host network connect to pods; empty
    means that they run on the network of the pods."""
    token_file: Path | None = None
    """File with the token of this process for the metrics servers; None if it sends none."""
    metrics_server: MetricsServerSettings = Field(default_factory=MetricsServerSettings)

    @property
    def serves_metrics_api(self) -> bool:
        """Whether the metrics server serves external.metrics.k8s.io, unless another component
        owns it.
        """
        return self.metrics_api and not self.watch_namespaces

    @property
    def metrics_service(self) -> tuple[str, str] | None:
        """Namespace and name of the metrics server's Service object; None if `metrics_server_url`
        does not name one.
        """
        host = urlsplit(self.metrics_server_url or "").hostname or ""
        name, _, rest = host.partition(".")
        namespace, _, kind = rest.partition(".")
        return (namespace, name) if kind == "svc" or kind.startswith("svc.") else None
