"""The API of a service: a port-forward or a URL, and the API key."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from llmservice_operator.api import Manifest
from llmservice_operator.errors import OperatorError
from llmservice_operator.kubectl_plugin.kubectl import Kubectl, KubectlFailed

_USUAL_PORTS = {"http": 80, "https": 443}


class Unreachable(OperatorError):
    """The API of the service cannot be reached."""


@dataclass(frozen=True)
class EndpointOptions:
    """Arguments of the command line about the API."""

    url: str | None = None
    """Address of the API; None forwards a port to the Service object."""
    ca_file: Path | None = None
    """Certificates that sign the certificate of the API; None means those of the system."""
    api_key_file: Path | None = None
    """File with the API key; None reads the Secret of spec.auth."""
    key_name: str | None = None
    """Key of the entry in the Secret of spec.auth; None means the first one."""
    model: str | None = None
    """Value of `model` in requests; None means the first model that the API lists."""
    timeout: float = 120.0
    """Longest time in seconds between two parts of an answer."""


@dataclass(frozen=True)
class Endpoint:
    """Everything that a client of the API needs."""

    url: str
    timeout: float
    model: str | None = None
    api_key: str | None = None
    host: str | None = None
    """Name that the certificate must have, if it is not that of the URL."""
    tls: ssl.SSLContext | None = None


@contextmanager
def open_endpoint(
    kubectl: Kubectl, service: Manifest, options: EndpointOptions
) -> Iterator[Endpoint]:
    """Yield the API of a service, through a port-forward that ends with the block.

    Raises Unreachable, KubectlFailed and OSError.
    """
    name, status = service["metadata"]["name"], service.get("status", {})
    key = _api_key(kubectl, service, options)
    tls = ssl.create_default_context(cafile=options.ca_file)
    if options.url is not None:
        url = options.url.rstrip("/").removesuffix("/v1")
        yield Endpoint(url, options.timeout, options.model, key, None, tls)
        return
    if status.get("url") is None or status.get("readyReplicas", 0) == 0:
        raise Unreachable(
            f"{name} has no ready replica: `kubectl llm status {name}` says what it waits for"
        )
    address = urlsplit(status["url"])
    port = address.port or _USUAL_PORTS[address.scheme]
    with kubectl.forward(f"service/{name}", port) as local:
        url = f"{address.scheme}://127.0.0.1:{local}"
        yield Endpoint(url, options.timeout, options.model, key, address.hostname, tls)


def _api_key(kubectl: Kubectl, service: Manifest, options: EndpointOptions) -> str | None:
    """Return the API key; None if the service needs none."""
    if options.api_key_file is not None:
        return options.api_key_file.read_text().strip()
    reference = service["spec"].get("auth", {}).get("apiKeysSecretRef")
    if reference is None:
        return None
    try:
        secret = kubectl.read("secret", reference["name"])
    except KubectlFailed as error:
        raise KubectlFailed(
            f"the API key cannot be read, so pass one with --api-key-file: {error}"
        ) from error
    keys = secret.get("data", {})
    wanted = options.key_name or reference.get("key") or min(keys, default=None)
    if wanted not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise Unreachable(
            f"the Secret {reference['name']} has no key {wanted}: choose one with --key-name, of "
            f"{known}"
        )
    return base64.b64decode(keys[wanted]).decode().strip()
