"""Parts that occur at several places of the configuration of Envoy."""

from typing import Any, Final

from llmservice_operator.router_settings import RouterSettings

TYPES: Final = "type.googleapis.com/envoy."
BUFFER_BYTES: Final = 32 * 1024  # a slow client slows its replica down after 32 KiB, not 1 MiB

Config = dict[str, Any]


def typed(name: str, type_name: str, **fields: Any) -> Config:
    return {
        "name": name,
        "typed_config": {"@type": f"{TYPES}extensions.{type_name}", **fields},
    }


def protocol(**options: Any) -> Config:
    name = "extensions.upstreams.http.v3.HttpProtocolOptions"
    return {f"envoy.{name}": {"@type": f"{TYPES}{name}", **options}}


def file(settings: RouterSettings, name: str) -> Config:
    folder = str(settings.run_directory)
    source = {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}
    return {"path_config_source": source}


def pipe(settings: RouterSettings, name: str) -> Config:
    return {"pipe": {"path": f"{settings.run_directory}/{name}", "mode": 0o600}}
