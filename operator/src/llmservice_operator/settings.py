"""The values the operator process is started with; __main__ reads them from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Self

from llmservice_operator.api.accelerator_class import AcceleratorClass, parse_classes
from llmservice_operator.errors import InvalidSettings

PREFIX = "LLMSERVICE_OPERATOR_"
"""Every setting is the environment variable PREFIX + NAME."""

ENGINE_VERSION = "0.32.0"
"""vLLM version inside the server images released with this operator."""

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def _released(image: str) -> str:
    return f"ghcr.io/llmservice/{image}:{version('llmservice-operator')}"


@dataclass(frozen=True)
class ServerImages:
    """Default model server images; an LLMService keeps the one it was first given."""

    gpu: str = field(default_factory=lambda: _released("server-gpu"))
    cpu: str = field(default_factory=lambda: _released("server-cpu"))
    engine_version: str = ENGINE_VERSION
    """vLLM version in both images."""


@dataclass(frozen=True)
class MetricsServerSettings:
    """Settings that only the metrics server reads."""

    external_port: int = 8443
    """Port of external.metrics.k8s.io, for the API server alone."""
    scaling_port: int = 8081
    """Port of the load reports as JSON."""
    service_name: str = "llmservice-operator-metrics-server"
    """Service object, in the operator's namespace, through which the API server reaches it."""
    service_port: int = 443
    owner_role: str = "llmservice-operator-metrics-server"
    """ClusterRole that the APIService is deleted with."""
    pod_address: str = "127.0.0.1"
    """Address at which the other replica reaches this one."""
    drain_seconds: int = 5
    """Seconds that it keeps answering after SIGTERM, until clients are no longer routed to it."""


@dataclass(frozen=True)
class OperatorSettings:
    images: ServerImages = field(default_factory=ServerImages)
    hub_endpoint: str | None = None
    """Address of a Hugging Face hub or mirror; None means the public hub."""
    accelerator_classes: Mapping[str, AcceleratorClass] = field(default_factory=dict)
    """Accelerator classes by the name that spec.accelerator.class gives."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose LLMServices are served; empty means all."""
    namespace: str = "llmservice-system"
    """Where the operator itself runs and keeps its Lease."""
    monitoring_namespace: str | None = None
    """Namespace whose pods may read the metrics of model servers; None means none."""
    monitoring_pod_labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of those pods; empty means all pods of that namespace."""
    lease_name: str = "llmservice-operator"
    keda: bool = False
    """Whether the operator has the rights to write KEDA's ScaledObjects."""
    health_port: int = 8080
    """Port of /livez, /readyz and /metrics."""
    log_level: str = "INFO"
    audit_period_seconds: float = 300.0
    """Seconds between two comparisons of the watched objects with the cluster, +-20 %."""
    metrics_server_url: str | None = None
    """Where the operator reads load reports, without a path; None: there is no metrics server."""
    metrics_server: MetricsServerSettings = field(default_factory=MetricsServerSettings)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self:
        """Read the settings; an empty variable counts as unset.

        Raises InvalidSettings, which names the variable and the accepted values.
        """
        default = cls()
        own = default.metrics_server

        def text(name: str, otherwise: str) -> str:
            return env.get(PREFIX + name, "").strip() or otherwise

        def address(name: str) -> str | None:
            value = text(name, "")
            if value and not value.startswith(("http://", "https://")):
                raise InvalidSettings(
                    f"{PREFIX}{name} is {value!r}: write an address that starts with"
                    " http:// or https://"
                )
            return value or None

        keda = text("KEDA", "false").lower()
        if keda not in ("true", "false"):
            raise InvalidSettings(f"{PREFIX}KEDA is {keda!r}: write true or false")

        def number(name: str, otherwise: int, lowest: int, highest: int, what: str) -> int:
            value = text(name, str(otherwise))
            if not value.isdecimal() or not lowest <= int(value) <= highest:
                raise InvalidSettings(f"{PREFIX}{name} is {value!r}: write {what}")
            return int(value)

        def port(name: str, otherwise: int) -> int:
            return number(name, otherwise, 1, 65535, "a port number from 1 to 65535")

        level = text("LOG_LEVEL", default.log_level).upper()
        if level not in LOG_LEVELS:
            raise InvalidSettings(
                f"{PREFIX}LOG_LEVEL is {level!r}: write one of {', '.join(LOG_LEVELS)}"
            )
        period = text("AUDIT_PERIOD_SECONDS", f"{default.audit_period_seconds:g}")
        if not period.isdecimal() or int(period) < 1:
            raise InvalidSettings(
                f"{PREFIX}AUDIT_PERIOD_SECONDS is {period!r}: write a whole number from 1"
            )
        labels = text("MONITORING_POD_LABELS", "")
        pairs = [pair.strip().partition("=") for pair in labels.split(",") if pair.strip()]
        if not all(key and separator for key, separator, _ in pairs):
            raise InvalidSettings(
                f"{PREFIX}MONITORING_POD_LABELS is {labels!r}: write KEY=VALUE,KEY=VALUE"
            )
        namespaces = (name.strip() for name in text("WATCH_NAMESPACES", "").split(","))
        return cls(
            images=ServerImages(
                gpu=text("SERVER_IMAGE_GPU", default.images.gpu),
                cpu=text("SERVER_IMAGE_CPU", default.images.cpu),
                engine_version=text("ENGINE_VERSION", default.images.engine_version),
            ),
            hub_endpoint=address("HUB_ENDPOINT"),
            accelerator_classes=parse_classes(
                text("ACCELERATOR_CLASSES", "{}"), f"{PREFIX}ACCELERATOR_CLASSES"
            ),
            watch_namespaces=tuple(name for name in namespaces if name),
            namespace=text("NAMESPACE", default.namespace),
            monitoring_namespace=text("MONITORING_NAMESPACE", "") or None,
            monitoring_pod_labels={key: value for key, _, value in pairs},
            lease_name=text("LEASE_NAME", default.lease_name),
            keda=keda == "true",
            health_port=port("HEALTH_PORT", default.health_port),
            log_level=level,
            audit_period_seconds=float(period),
            metrics_server_url=address("METRICS_SERVER_URL"),
            metrics_server=MetricsServerSettings(
                external_port=port("EXTERNAL_METRICS_PORT", own.external_port),
                scaling_port=port("SCALING_PORT", own.scaling_port),
                service_name=text("METRICS_SERVICE_NAME", own.service_name),
                service_port=port("METRICS_SERVICE_PORT", own.service_port),
                owner_role=text("OWNER_ROLE", own.owner_role),
                pod_address=text("POD_ADDRESS", own.pod_address),
                drain_seconds=number(
                    "DRAIN_SECONDS", own.drain_seconds, 0, 3600, "a whole number up to 3600"
                ),
            ),
        )
