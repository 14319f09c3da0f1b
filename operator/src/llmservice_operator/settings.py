"""The settings of the operator, the metrics server and the command line.

They are read from environment variables that __main__ passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
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
"""Prefix of the environment variables of all settings. A variable is named PREFIX + NAME."""

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
        """Return the texts of the fields of this class, by field.

        The names in `variables` must be in lower case.
        """
        source = EnvSettingsSource(cls)
        source.env_vars = variables
        return source()


class ServerImages(_Settings):
    """Default model server images.

    An LLMService keeps the first image with which a replica became ready, until its spec requires
    another.
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


class OperatorSettings(_Settings):
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
    metrics_server: MetricsServerSettings = Field(default_factory=MetricsServerSettings)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Return the settings in the environment. An empty variable counts as unset.

        Raises InvalidSettings, whose text names every invalid variable and the correction.
        """
        variables = {
            name.lower(): text.strip()
            for name, text in environment.items()
            if name in _VARIABLES and text.strip()
        }
        groups = {
            "images": ServerImages._texts(variables),
            "metrics_server": MetricsServerSettings._texts(variables),
        }
        try:
            return cls(**{**cls._texts(variables), **groups})
        except ValidationError as error:
            refusals = (_refusal(each, variables) for each in error.errors())
            raise InvalidSettings("; ".join(refusals)) from None


def _refusal(error: ErrorDetails, variables: Mapping[str, str]) -> str:
    """Return the sentence that names a variable, its text and what to write instead."""
    if error["type"] == "json_setting":
        return error["msg"]
    variable = PREFIX + str(error["loc"][-1]).upper()
    text = variables[variable.lower()]
    if error["type"] == "content":
        return f"{variable} is {text!r}: {error['msg']}{_CHART_VALUES.get(variable, '')}"
    return f"{variable} is {text!r}: write {_VARIABLES[variable]}"


_CHART_VALUES = {
    f"{PREFIX}HUB_ENDPOINT": "; correct the chart value model.hubEndpoint",
    f"{PREFIX}MONITORING_POD_LABELS": "; correct the chart value monitoring.podLabels",
}
"""Advice for variables whose content may be invalid: the chart value that sets the variable."""

_VARIABLES = {
    PREFIX + str(field.validation_alias or name).upper(): field.description
    for group in (OperatorSettings, ServerImages, MetricsServerSettings)
    for name, field in group.model_fields.items()
}
"""Description of every variable, by its name. Other variables that start with PREFIX are ignored,
because Kubernetes may set them for a Service object whose name begins in the same way."""
