"""The settings of the operator, the metrics server, the router and the command line.

They are read from environment variables that __main__ passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from llmservice_operator.api.accelerator import MAX_GPUS
from llmservice_operator.api.accelerator_class import AcceleratorClass, parse_classes
from llmservice_operator.api.labels import KEY_FORM, KEY_LENGTH, VALUE_FORM
from llmservice_operator.api.references import NAMESPACE_FORM, SUBDOMAIN_FORM
from llmservice_operator.api.server_defaults import ServerDefaults, parse_server_defaults
from llmservice_operator.errors import InvalidSettings

PREFIX = "LLMSERVICE_OPERATOR_"
"""Prefix of the environment variables of the operator and the metrics server. A variable is named
PREFIX + NAME."""

ROUTER_PREFIX = "LLMSERVICE_ROUTER_"
"""Prefix of the environment variables of the router."""

ENGINE_VERSION = "0.32.0"
"""vLLM version inside the server images released with this operator."""


def _released(image: str) -> str:
    return f"ghcr.io/llmservice/{image}:{version('llmservice-operator')}"


def _from_text(parse: Callable[[str], Any]) -> BeforeValidator:
    """Return a validator that parses the text of a variable and leaves other values alone."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


def _labels(text: str) -> dict[str, str]:
    pairs = [pair.strip().partition("=") for pair in text.split(",") if pair.strip()]
    if not all(key and separator for key, separator, _ in pairs):
        raise ValueError("a pair is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _valid_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in labels.items():
        if len(key) > KEY_LENGTH or not KEY_FORM.fullmatch(key):
            raise _wrong(f"{key!r} is no label key, such as app.kubernetes.io/name")
        if len(value) > 63 or not VALUE_FORM.fullmatch(value):
            raise _wrong(f"{value!r} is no label value, such as prometheus")
    return labels


def _named(form: re.Pattern[str]) -> Callable[[str], str]:
    """Return a validator for the name of an object, which must match `form`."""

    def check(name: str) -> str:
        if not form.fullmatch(name) or len(name) > 253:
            raise ValueError("not a valid name")
        return name

    return check


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
        raise _wrong("it has no valid host")
    try:
        port = urlsplit(address).port
    except ValueError:
        port = 0
    if port == 0:
        raise _wrong("its port is no number from 1 to 65535")
    return address


def _wrong(said: str) -> PydanticCustomError:
    """Return the error for a setting with a valid form but an invalid content."""
    return PydanticCustomError("content", "{said}", {"said": said})


def _from_json(name: str, parse: Callable[[str, str], Any]) -> BeforeValidator:
    """Return a validator that parses the text of a variable with `parse`.

    The arguments of `parse` are the text and the full name of the variable.
    """

    def read(text: str) -> Any:
        try:
            return parse(text, f"{PREFIX}{name}")
        except InvalidSettings as error:
            raise PydanticCustomError("json_setting", "{said}", {"said": str(error)}) from error

    return _from_text(read)


_HOST = re.compile("[A-Za-z0-9._:-]+")

# The description of a field says what to write into its variable.
Port = Annotated[int, Field(ge=1, le=65535, description="a port number from 1 to 65535")]
Address = Annotated[
    str | None,
    Field(pattern=r"^https?://", description="an address that starts with http:// or https://"),
    AfterValidator(_reachable),
]
Namespace = Annotated[
    str, AfterValidator(_named(NAMESPACE_FORM)), Field(description="the name of a namespace")
]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$", description="a DNS name or an address")]
ObjectName = Annotated[
    str, AfterValidator(_named(SUBDOMAIN_FORM)), Field(description="the name of an object")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    _from_text(str.upper),
    Field(description="one of DEBUG, INFO, WARNING, ERROR"),
]
Switch = Annotated[
    bool,
    _from_text(lambda text: {"true": True, "false": False}.get(text.lower())),
    Field(description="true or false"),
]
Names = Annotated[
    tuple[str, ...],
    _from_text(lambda text: tuple(name for it in text.split(",") if (name := it.strip()))),
    AfterValidator(lambda names: tuple(map(_named(NAMESPACE_FORM), names))),
    Field(description="names of namespaces, separated by commas"),
]
Labels = Annotated[
    Mapping[str, str],
    _from_text(_labels),
    AfterValidator(_valid_labels),
    Field(description="KEY=VALUE,KEY=VALUE"),
]


class _Settings(BaseSettings):
    """Settings that are read only from the variables that the caller passes.

    They are not read from the environment of the process.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        populate_by_name=True,
        env_prefix=PREFIX,
        env_prefix_target="all",
        enable_decoding=False,  # the types above parse the text
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the constructor's arguments as the only source, so that no settings are read from
        the environment of the process.
        """
        return (init_settings,)

    @classmethod
    def _texts(cls, variables: Mapping[str, str]) -> dict[str, Any]:
        """Return a mapping from each field of this class that `variables` sets to its text.

        The names in `variables` must be in lower case.
        """
        source = EnvSettingsSource(cls)
        source.env_vars = variables
        return source()

    @classmethod
    def _variables(cls) -> dict[str, str | None]:
        """Return a mapping from the name of each variable of this class to its description."""
        prefix = cls.model_config["env_prefix"]
        return {
            prefix + str(field.validation_alias or name).upper(): field.description
            for name, field in cls.model_fields.items()
        }


class _ProcessSettings(_Settings):
    """All settings of one process."""

    _groups: ClassVar[Mapping[str, type[_Settings]]] = {}
    """Fields that are groups of further settings."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings in the environment. An empty variable counts as unset.

        Other variables that start with the prefix are ignored, because Kubernetes may set them for
        a Service object whose name begins in the same way. Raises InvalidSettings, whose text names
        every invalid variable and the correction.
        """
        known = cls._variables() | {
            name: text
            for group in cls._groups.values()
            for name, text in group._variables().items()
        }
        variables = {
            name.lower(): text.strip()
            for name, text in environment.items()
            if name in known and text.strip()
        }
        groups = {field: group._texts(variables) for field, group in cls._groups.items()}
        try:
            return cls(**{**cls._texts(variables), **groups})
        except ValidationError as error:
            prefix = cls.model_config["env_prefix"]
            refusals = (_refusal(each, prefix, variables, known) for each in error.errors())
            raise InvalidSettings("; ".join(dict.fromkeys(refusals))) from None


class ServerImages(_Settings):
    """Default model server images.

    An LLMService keeps the first image with which a replica became ready, until the spec requires
    another image.
    """

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


class MetricsServerSettings(_Settings):
    """Settings that only the metrics server reads."""

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
    """Address at which the other replica reaches this process."""
    drain_seconds: int = Field(5, ge=0, le=3600, description="a whole number up to 3600")
    """Time in seconds that the server keeps responding after SIGTERM, until the cluster has stopped
    routing clients to it."""


class OperatorSettings(_ProcessSettings):
    _groups = {"images": ServerImages, "metrics_server": MetricsServerSettings}
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
    metrics_server: MetricsServerSettings = Field(default_factory=MetricsServerSettings)


class StepPrior(BaseModel):
    """Assumed duration of an engine step, until steps have been measured.

    The fields are those of `scaling.step_model.StepModel`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fixed: float = Field(ge=0)
    prefill: float = Field(ge=0)
    sequence: float = Field(ge=0)
    kv: float = Field(ge=0)


class RouterSettings(_ProcessSettings):
    """Settings of all processes of a router pod."""

    model_config = SettingsConfigDict(env_prefix=ROUTER_PREFIX)

    namespace: Namespace
    """Namespace of the service."""
    service: ObjectName
    """Name of the LLMService."""
    replicas_host: Host
    """DNS name of a headless Service object with the addresses of all replicas, also of those that
    are not ready; or the address of the only replica."""
    step_prior: Annotated[StepPrior, _from_text(StepPrior.model_validate_json)] = Field(
        description='JSON such as {"fixed": 0.01, "prefill": 1e-4, "sequence": 1e-5, "kv": 1e-8}'
    )
    """Step model of a replica before any step was measured, in seconds."""
    pickers_host: Host | None = Field(None, description="a DNS name or an address")
    """DNS name of a headless Service object with the addresses of all router pods. None if this
    pod is the only one."""
    metrics_servers_host: Host | None = Field(None, description="a DNS name or an address")
    """DNS name of a headless Service object with the addresses of the metrics servers. Only these
    addresses may send lists of replicas. With None, no address may."""
    pod_address: Host = "127.0.0.1"
    """Address of this pod."""
    client_port: Port = 8000
    """Port of the API."""
    management_port: Port = 9090
    """Port of /livez, /readyz and /metrics."""
    picker_port: Port = 9002
    """Port at which the picker serves the proxies of all router pods."""
    forwarder_port: Port = 9003
    """Port of the forwarder on the loopback address."""
    run_directory: Path = Path("/run/llmservice")
    """Writable folder for configuration files and sockets. It must not contain other files."""
    api_keys_directory: Path | None = None
    """Folder of a mounted Secret; the content of every file is a key. With None, requests need no
    key."""
    tls_directory: Path | None = None
    """Folder of a mounted Secret with tls.crt and tls.key. With None, clients speak plain HTTP."""
    max_body_bytes: int = Field(
        16 * 1024**2, ge=1, le=2**40, description="a whole number from 1 to 2^40"
    )
    """Maximum size of a request body in bytes."""
    max_held_requests: int = Field(
        1000, ge=1, le=1_000_000, description="a whole number from 1 to 1000000"
    )
    """Maximum number of requests that wait for a replica at the same time."""
    max_held_bytes: int = Field(
        64 * 1024**2, ge=1, le=2**40, description="a whole number from 1 to 2^40"
    )
    """Maximum total size in bytes of the bodies that the forwarder holds."""
    hold_timeout_seconds: int = Field(
        300, ge=0, le=3600, description="a whole number from 0 to 3600"
    )
    """Longest time in seconds for which a request waits for a replica."""
    heartbeat_seconds: int = Field(10, ge=1, le=3600, description="a whole number from 1 to 3600")
    """Time in seconds between two comments that a streaming client gets before its answer."""
    policy: Literal["LeastWork", "LeastRequest"] = Field(
        "LeastWork", description="one of LeastWork, LeastRequest"
    )
    """Choice of the replica: by seconds of work, or by the number of requests."""
    ttft_limit_seconds: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False, description="a number above 0 and up to 3600"
    )
    """Limit of the time to first token in seconds. None if the service has no such SLO."""
    drain_seconds: int = Field(5, ge=0, le=3600, description="a whole number from 0 to 3600")
    """Time in seconds that the router keeps accepting connections after SIGTERM, until the cluster
    has stopped sending clients to it."""
    drain_timeout_seconds: int = Field(
        300, ge=0, le=86_400, description="a whole number from 0 to 86400"
    )
    """Longest time in seconds, after `drain_seconds`, for which the router waits until all answers
    have ended."""
    log_level: LogLevel = "INFO"

    def environment(self) -> dict[str, str]:
        """Return the environment variables from which `from_environment` reads these settings.

        A setting with its default value has no variable.
        """
        told = self.model_dump(mode="json", exclude_defaults=True)
        prior = {"step_prior": self.step_prior.model_dump_json()}
        return {f"{ROUTER_PREFIX}{name.upper()}": str(it) for name, it in (told | prior).items()}


def _refusal(
    error: ErrorDetails,
    prefix: str,
    variables: Mapping[str, str],
    known: Mapping[str, str | None],
) -> str:
    """Return the sentence that names a variable, its text and what to write instead."""
    if error["type"] == "json_setting":
        return error["msg"]
    # Parts of the location after the variable's name are inside the variable's value.
    name = next(it for it in reversed(error["loc"]) if prefix + str(it).upper() in known)
    variable = prefix + str(name).upper()
    if error["type"] == "missing" and variable.lower() not in variables:
        return f"{variable} is not set: write {known[variable]}"
    text = variables[variable.lower()]
    if error["type"] == "content":
        return f"{variable} is {text!r}: {error['msg']}{_CHART_VALUES.get(variable, '')}"
    return f"{variable} is {text!r}: write {known[variable]}"


_CHART_VALUES = {
    f"{PREFIX}HUB_ENDPOINT": "; correct the chart value model.hubEndpoint",
    f"{PREFIX}MONITORING_POD_LABELS": "; correct the chart value monitoring.podLabels",
}
"""Advice for variables whose content may be invalid: the chart value that sets the variable."""
