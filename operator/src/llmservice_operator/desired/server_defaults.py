"""Applies the chart's defaults for model servers to a service."""

from __future__ import annotations

from llmservice_operator.api.environment import EnvironmentVariable
from llmservice_operator.api.server_defaults import Proxy, ServerDefaults
from llmservice_operator.api.spec import LLMService


def with_defaults(service: LLMService, defaults: ServerDefaults) -> LLMService:
    """Return the service with the defaults in the fields that its spec does not set."""
    spec, engine = service.spec, service.spec.engine
    filled = {
        "image_pull_secrets": engine.image_pull_secrets or defaults.image_pull_secrets,
        "env": (*engine.env, *_proxy_variables(engine.env, defaults.proxy)),
    }
    merged = {
        "engine": engine.model_copy(update=filled),
        "ca_bundle": spec.ca_bundle or defaults.ca_bundle,
    }
    return service.model_copy(update={"spec": spec.model_copy(update=merged)})


def _proxy_variables(
    own: tuple[EnvironmentVariable, ...], proxy: Proxy
) -> tuple[EnvironmentVariable, ...]:
    """Return the variables of the proxy, without those that the spec sets in upper or lower case.

    Libraries prefer a variable in lower case to the same one in upper case.
    """
    taken = {variable.name.upper() for variable in own}
    return tuple(
        EnvironmentVariable(name=name, value=value)
        for name, value in proxy.variables.items()
        if name not in taken
    )
