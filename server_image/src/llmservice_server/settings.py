"""Settings of the server from environment variables; engine settings are flags."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "LLMSERVICE_"

_DAY_SECONDS = 86400.0


class InvalidSetting(ValueError):
    """An environment variable has an invalid value; the text names the variable."""


def _number(default: float | None, most: float, least: float = 0) -> Any:
    """Return a field that holds a number within bounds; it is an integer where its default is."""
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server process; a field is read from LLMSERVICE_ and its upper-case name."""

    api_port: int = _number(8000, 65535)
    """Port of /v1 and /generate."""

    management_port: int = _number(9090, 65535)
    """Port of the probes and /metrics; never exposed outside the cluster."""

    pre_stop_seconds: float = _number(5.0, _DAY_SECONDS)
    """Time in seconds that requests are still served after SIGTERM, while endpoints are updated."""

    drain_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Maximum time in seconds to finish the requests in progress once new ones are refused."""

    request_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Maximum duration of a request in seconds; 0 sets no limit.

    It equals the default drain time, so a rollout ends no request that would have continued
    otherwise. It is also the timeout of common clients.
    """

    engine_hang_seconds: float = _number(120.0, _DAY_SECONDS, least=0.5)
    """Maximum time in seconds without an engine step while requests wait.

    A judgement: longer than the longest step, which computes one chunk of a prompt or compiles.
    """

    max_body_bytes: int = _number(16 * 1024**2, 2**40, least=1)
    """Maximum size of a request body in bytes. Enough for a few images; a long prompt is a
    hundredth of it."""

    max_choices: int = _number(128, 16384, least=1)
    """Maximum number of answers that one request may ask for (`n`); the limit of the OpenAI API."""

    api_keys_directory: Path | None = None
    """Folder of a mounted Secret; the content of every file is a key. None requires no key."""

    shared_cache_directory: Path | None = None
    """Folder of a model cache that several servers share and one at a time fills. None means that
    this server has a cache of its own."""

    cache_takeover_seconds: float = _number(60.0, _DAY_SECONDS, least=0.5)
    """Time in seconds without a sign of life from the server that fills the shared cache, after
    which another takes over.

    A judgement: network storage pauses for seconds, and an import blocks threads as long.
    """

    administration_routes: bool = False
    """Whether vLLM's administration routes (pause, weights, adapters, sleep) are open."""

    slo_ttft_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Limit of the time to first token that /autoscale measures against; None sets no limit."""

    slo_itl_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Limit of the mean time between tokens that /autoscale measures against; None sets no
    limit."""

    termination_log: Path = Path("/dev/termination-log")
    """File of the termination message that the kubelet reads; used only if it can be written."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServerSettings":
        """Read the settings. Raises InvalidSetting for a value that is not a number or out of
        range.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            name = PREFIX + each.name.upper()
            if text := environment.get(name):
                values[each.name] = _parsed(name, text, each)
        settings = cls(**values)
        if settings.api_port == settings.management_port != 0:
            raise InvalidSetting(
                f"{PREFIX}API_PORT and {PREFIX}MANAGEMENT_PORT are both {settings.api_port}; "
                "give them different ports"
            )
        return settings


def _parsed(name: str, text: str, setting: Field[Any]) -> object:
    """Return the text, converted to the type of the setting."""
    if isinstance(setting.default, bool):
        if text not in ("true", "false"):
            raise InvalidSetting(f"{name} is {text!r}; it must be true or false")
        return text == "true"
    if "most" not in setting.metadata:
        return Path(text)
    try:
        value = int(text) if isinstance(setting.default, int) else float(text)
    except ValueError:
        raise InvalidSetting(f"{name} is {text!r}; it must be a number") from None
    least, most = setting.metadata["least"], setting.metadata["most"]
    if not least <= value <= most:
        raise InvalidSetting(f"{name} is {text}; it must be between {least:g} and {most:.16g}")
    return value
