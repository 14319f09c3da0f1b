"""What the operator tells the server by environment variables; engine flags come otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

PREFIX = "LLMSERVICE_"


class InvalidSetting(ValueError):
    """An environment variable holds something that cannot be used; the text names it."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of one server process; a field is read from LLMSERVICE_ and its upper-case name."""

    api_port: int = 8000
    """Port of /v1 and /generate."""

    management_port: int = 9090
    """Port of the probes and /metrics; never exposed outside the cluster."""

    pre_stop_seconds: float = 5.0
    """How long requests are still served after SIGTERM, while endpoints are being updated."""

    drain_timeout_seconds: float = 600.0
    """Longest wait for requests in flight once new ones are refused."""

    termination_log: Path = Path("/dev/termination-log")
    """Where the kubelet reads why the container ended; used only when it can be written."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServerSettings":
        """Read the settings; raises InvalidSetting for what is no number or out of range."""
        values: dict[str, int | float | Path] = {}
        for field in fields(cls):
            name = PREFIX + field.name.upper()
            if text := environment.get(name):
                values[field.name] = _parsed(name, text, field.default)
        settings = cls(**values)  # type: ignore[arg-type]
        if settings.api_port == settings.management_port != 0:
            raise InvalidSetting(
                f"{PREFIX}API_PORT and {PREFIX}MANAGEMENT_PORT are both {settings.api_port}; "
                "give them different ports"
            )
        return settings


def _parsed(name: str, text: str, default: object) -> int | float | Path:
    """Return the text in the type of the default."""
    if isinstance(default, Path):
        return Path(text)
    is_port = isinstance(default, int)
    largest = 65535 if is_port else 86400
    try:
        value = int(text) if is_port else float(text)
    except ValueError:
        raise InvalidSetting(f"{name} is {text!r}; it must be a number") from None
    if not 0 <= value <= largest:
        raise InvalidSetting(f"{name} is {text}; it must be between 0 and {largest}")
    return value
