"""spec.service and spec.auth: how clients reach the API and what they must bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields
from llmservice_operator.api.labels import KEYS_ARE_VALID
from llmservice_operator.api.references import ApiKeysSecret


class ServiceObject(Fields):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """Who can reach the API: ClusterIP is the cluster alone, NodePort adds a port on every node,
    LoadBalancer an address from the cloud. The management port stays inside in any case."""
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    """Port on which clients find the API."""
    annotations: Annotated[
        Mapping[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        KEYS_ARE_VALID,
    ] = Field(default_factory=dict)
    """Annotations of the Service object, with which clouds configure load balancers."""


class Auth(Fields):
    api_keys_secret_ref: ApiKeysSecret
    """The Secret with the API keys, one of which every request must bring as `Authorization: Bearer
    KEY`. It is mounted and read again when it changes: to rotate, add a key, move the clients, and
    remove the old one; no pod restarts. Without the Secret no pod becomes ready."""
