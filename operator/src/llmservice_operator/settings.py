"""The values the operator process is started with; __main__ reads them from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Self

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
class OperatorSettings:
    images: ServerImages = field(default_factory=ServerImages)
    hub_endpoint: str | None = None
    """Address of a Hugging Face hub or mirror; None means the public hub."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose LLMServices are served; empty means all."""
    namespace: str = "llmservice-system"
    """Where the operator itself runs and keeps its Lease."""
    lease_name: str = "llmservice-operator"
    keda: bool = False
    """Whether the operator has the rights to write KEDA's ScaledObjects."""
    health_port: int = 8080
    """Port of /livez, /readyz and /metrics."""
    log_level: str = "INFO"
    audit_period_seconds: float = 300.0
    """How often what the watches told is compared with the cluster, +-20 %."""
    metrics_server_url: str | None = None
    """Where the operator reads scaling reports, without a path; None means that there are none."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Self:
        """Read the settings; an empty variable counts as unset.

        Raises InvalidSettings that names the variable and what it may hold.
        """
        default = cls()

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
        port = text("HEALTH_PORT", str(default.health_port))
        if not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise InvalidSettings(
                f"{PREFIX}HEALTH_PORT is {port!r}: write a port number from 1 to 65535"
            )
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
        namespaces = (name.strip() for name in text("WATCH_NAMESPACES", "").split(","))
        return cls(
            images=ServerImages(
                gpu=text("SERVER_IMAGE_GPU", default.images.gpu),
                cpu=text("SERVER_IMAGE_CPU", default.images.cpu),
                engine_version=text("ENGINE_VERSION", default.images.engine_version),
            ),
            hub_endpoint=address("HUB_ENDPOINT"),
            watch_namespaces=tuple(name for name in namespaces if name),
            namespace=text("NAMESPACE", default.namespace),
            lease_name=text("LEASE_NAME", default.lease_name),
            keda=keda == "true",
            health_port=int(port),
            log_level=level,
            audit_period_seconds=float(period),
            metrics_server_url=address("METRICS_SERVER_URL"),
        )
