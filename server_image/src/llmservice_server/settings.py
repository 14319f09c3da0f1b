"""Reads the settings of the server from environment variables. Engine settings are flags."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import re2
from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "LLMSERVICE_"

_DAY_SECONDS = 86400.0


class InvalidSetting(ValueError):
    """Environment variables have invalid values; the text names each of them."""


def _number(default: float | None, most: float, least: float = 0) -> Any:
    """Return a field for a number within bounds."""
    return Field(default, ge=least, le=most)


def _true_or_false(value: object) -> object:
    """Return the value; raise ValueError for a text such as `yes`, which pydantic would accept."""
    if isinstance(value, str) and value not in ("true", "false"):
        raise ValueError("true or false")
    return value


def _pattern(value: str) -> str:
    """Return the pattern; raise ValueError if it is not valid in RE2."""
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        re2.compile(value, quiet)
    except re2.error as error:
        raise ValueError(f"a pattern in the syntax of RE2: {_words(error)}") from error
    return value


def _words(error: Exception) -> str:
    said = error.args[0]
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


class ServerSettings(BaseSettings):
    """Settings of one server process.

    The variable of each field is LLMSERVICE_ and the field's name in upper case.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    api_port: int = _number(8000, 65535)
    """Port of /v1 and /generate."""

    management_port: int = _number(9090, 65535)
    """Port of the probes, /metrics and /autoscale; no Service object has this port."""

    pre_stop_seconds: float = _number(5.0, _DAY_SECONDS)
    """Time in seconds that requests are still served after SIGTERM, while endpoints are updated."""

    drain_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Maximum time in seconds to finish the requests in progress once new requests are refused."""

    request_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Maximum duration of a request in seconds; 0 sets no limit.

    The default equals the default drain timeout, so a rollout ends no request that could otherwise
    have continued. It is also the timeout of common clients.
    """

    engine_hang_seconds: float = _number(120.0, _DAY_SECONDS, least=0.5)
    """Maximum time in seconds without an engine step while requests wait.

    The default is an estimate: it exceeds the longest step, in which the engine computes one chunk
    of a prompt or compiles kernels.
    """

    max_body_bytes: int = _number(16 * 1024**2, 2**40, least=1)
    """Maximum size of a request body in bytes. The default allows a few images; a long prompt takes
    a hundredth of it."""

    max_choices: int = _number(128, 16384, least=1)
    """Maximum number of answers per request (`n`). The default is the limit of the OpenAI API."""

    api_keys_directory: Path | None = None
    """Folder of a mounted Secret; the content of every file is a key. With None, requests need no
    key."""

    isolate_prefix_cache: Annotated[bool, BeforeValidator(_true_or_false)] = False
    """Whether requests with different API keys share nothing in the engine's prefix cache."""

    ca_bundle: Path | None = None
    """File with the certificates of authorities that are trusted in addition to the public ones.
    None trusts the public ones only."""

    shared_cache_directory: Path | None = None
    """Folder of a model cache that several servers share. One server at a time fills it. None means
    that this server has its own cache."""

    cache_takeover_seconds: float = _number(60.0, _DAY_SECONDS, least=0.5)
    """Maximum time in seconds without a sign of life from the server that fills the shared cache.
    After this time, another server takes over.

    The default is an estimate: network storage can pause for seconds, and an import can block
    threads for as long.
    """

    adapters_file: Path | None = None
    """File with the list of LoRA adapters, which the server follows while it runs. None means that
    it serves no adapters."""

    max_adapter_bytes: int = _number(4 * 1024**3, 2**40, least=1)
    """Maximum size in bytes of the weights of a LoRA adapter. The default allows rank 64 for all
    layers of a model of 200 billion parameters."""

    administration_routes: Annotated[bool, BeforeValidator(_true_or_false)] = False
    """Whether vLLM's administration routes (pause, weights, adapters, sleep) are open."""

    slo_ttft_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Limit of the time to first token; /autoscale counts the requests that meet it. None sets no
    limit."""

    slo_itl_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Limit of the mean time between tokens; /autoscale counts the requests that meet it. None sets
    no limit."""

    smoke_test: Annotated[bool, BeforeValidator(_true_or_false)] = True
    """Whether the server runs the smoke test, a request to itself before it is ready."""

    smoke_test_prompt: str | None = None
    """Prompt of the smoke test; None uses a default prompt."""

    smoke_test_expect: Annotated[str, AfterValidator(_pattern)] | None = None
    """Pattern in RE2 syntax that must occur in the smoke test's answer; None accepts any text."""

    smoke_test_timeout_seconds: float = _number(60.0, _DAY_SECONDS, least=0.5)
    """Maximum time in seconds until the answer to the smoke test is complete."""

    replica_namespace: str | None = None
    """Namespace of the replica's pod. With the next three settings, it is the replica's identity in
    /autoscale. A pod gets them from the downward API."""

    replica_service: str | None = None
    """Name of the replica's LLMService."""

    replica_pod: str | None = None
    """Name of the replica's pod."""

    replica_uid: str | None = None
    """UID of the replica's pod. A later pod with the same name or address has a different UID."""

    termination_log: Path = Path("/dev/termination-log")
    """File of the termination message that the kubelet reads; used only if it can be written."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the arguments as the only source; only `from_environment` reads variables."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; an empty variable counts as unset.

        Raises InvalidSetting for values that are malformed, out of range or contradictory.
        """
        source = EnvSettingsSource(cls)
        source.env_vars = {
            name.lower(): text for name, text in environment.items() if name.isupper() and text
        }
        try:
            return cls(**source())
        except ValidationError as error:
            raise InvalidSetting("; ".join(map(_refusal, error.errors()))) from None

    @property
    def identity(self) -> dict[str, str] | None:
        """Identity of the replica; None outside Kubernetes."""
        parts = {
            "namespace": self.replica_namespace,
            "service": self.replica_service,
            "pod": self.replica_pod,
            "uid": self.replica_uid,
        }
        known = {name: value for name, value in parts.items() if value is not None}
        return known if len(known) == len(parts) else None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.api_port == self.management_port != 0:
            raise ValueError(
                f"{PREFIX}API_PORT and {PREFIX}MANAGEMENT_PORT are both {self.api_port}; "
                "give them different ports"
            )
        return self


def _refusal(error: ErrorDetails) -> str:
    """Return a sentence that names a variable, its value and its allowed values."""
    said = str(error.get("ctx", {}).get("error", ""))
    if not error["loc"]:
        return said
    field = str(error["loc"][0])
    variable, text = f"{PREFIX}{field.upper()}", error["input"]
    if said:
        return f"{variable} is {text!r}; it must be {said}"
    if error["type"] not in ("greater_than_equal", "less_than_equal", "int_parsing_size"):
        return f"{variable} is {text!r}; it must be a number"
    bounds = ServerSettings.model_fields[field].metadata
    least = next(bound.ge for bound in bounds if isinstance(bound, Ge))
    most = next(bound.le for bound in bounds if isinstance(bound, Le))
    return f"{variable} is {text}; it must be between {least:g} and {most:.16g}"
