"""What the operator tells the server by environment variables; engine flags come otherwise."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

PREFIX = "LLMSERVICE_"

_DAY_SECONDS = 86400.0


class InvalidSetting(ValueError):
    """An environment variable holds something that cannot be used; the text names it."""


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
    """How long requests are still served after SIGTERM, while endpoints are being updated."""

    drain_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Longest wait for requests in flight once new ones are refused."""

    request_timeout_seconds: float = _number(600.0, _DAY_SECONDS)
    """Longest time for one request, 0 for no limit.

    As long as the default drain, so that a rollout ends no request that would have ended otherwise;
    it is also the patience of the usual clients.
    """

    engine_hang_seconds: float = _number(120.0, _DAY_SECONDS, least=0.5)
    """How long the engine may make no step while work is waiting.

    A judgement: longer than the longest step, which computes one chunk of a prompt or compiles.
    """

    max_body_bytes: int = _number(16 * 1024**2, 2**40, least=1)
    """Longest body of a request. Fits a few pictures; a long prompt is a hundredth of it."""

    max_choices: int = _number(128, 16384, least=1)
    """Most answers that one request may ask for (`n`); the limit of the OpenAI API."""

    api_keys_directory: Path | None = None
    """A mounted Secret: the content of every file is a key. None asks nobody for a key."""

    shared_cache_directory: Path | None = None
    """A folder that several servers share, where one at a time fills the model cache. None means
    that the cache is this server's own."""

    cache_takeover_seconds: float = _number(60.0, _DAY_SECONDS, least=0.5)
    """How long the server that fills the shared cache may give no sign of life before another
    takes its place.

    A judgement: storage on the network pauses for seconds, an import holds up threads as long.
    """

    administration_routes: bool = False
    """Whether vLLM's administration routes (pause, weights, adapters, sleep) can be reached."""

    slo_ttft_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Time to first token that /autoscale judges by, None for no such objective."""

    slo_itl_milliseconds: float | None = _number(None, _DAY_SECONDS * 1000)
    """Mean time between tokens that /autoscale judges by, None for no such objective."""

    termination_log: Path = Path("/dev/termination-log")
    """Where the kubelet reads why the container ended; used only when it can be written."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServerSettings":
        """Read the settings; raises InvalidSetting for what is no number or out of range."""
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
    """Return the text in the type of the setting."""
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
