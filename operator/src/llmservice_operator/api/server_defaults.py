"""Defaults for all model servers, which an administrator sets in the chart's values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from llmservice_operator.api.fields import Fields, wrong_content
from llmservice_operator.api.references import ImagePullSecret, KeySource

_ProxyAddress = Annotated[str, Field(pattern=r"^(https?://\S+)?$")]


class Proxy(Fields):
    # The API server validates an LLMService, but not these types. So unknown fields are refused.
    model_config = ConfigDict(extra="forbid")

    http: _ProxyAddress = ""
    """Proxy of requests to http:// addresses; empty means none."""
    https: _ProxyAddress = ""
    """Proxy of requests to https:// addresses; empty means none."""
    no_proxy: str = ""
    """Hosts, separated by commas, to which requests go without a proxy."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables from which libraries read the proxy, without empty ones."""
        variables = {
            "HTTP_PROXY": self.http,
            "HTTPS_PROXY": self.https,
            "NO_PROXY": self.no_proxy,
        }
        return {name: value for name, value in variables.items() if value}


class ServerDefaults(Fields):
    model_config = ConfigDict(extra="forbid")

    ca_bundle: KeySource | None = None
    """CA bundle for services without spec.caBundle. The ConfigMap or Secret must exist in the
    namespace of each of these services."""
    proxy: Proxy = Proxy()
    """Proxy for the model servers. A proxy variable in engine.env takes precedence over the same
    variable here."""
    image_pull_secrets: tuple[ImagePullSecret, ...] = ()
    """Pull secrets for services without engine.imagePullSecrets. The Secrets must exist in the
    namespace of each of these services."""
    amd_groups: tuple[Annotated[int, Field(ge=1, le=2**31 - 1)], ...] = ()
    """IDs of the groups that may open the device files of AMD GPUs on their nodes."""
    user_ids: Literal["Fixed", "Namespace"] = "Fixed"
    """User and group IDs of the pods. Fixed: the pods set them. Namespace: the platform assigns
    them for each namespace."""


def parse_server_defaults(text: str, variable: str) -> ServerDefaults:
    """Return the defaults in a JSON text. Raises InvalidSettings, which names the wrong field."""
    try:
        return ServerDefaults.model_validate_json(text)
    except ValidationError as error:
        raise wrong_content(variable, error) from error
