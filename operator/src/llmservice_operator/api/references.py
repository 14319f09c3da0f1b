"""References to other objects: by name only, in the LLMService's own namespace.

A reference to another namespace would let users read, through the operator, objects that they have
no access to.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule, matches

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN_PATTERN: Final = f"{_LABEL}([.]{_LABEL})*"
"""Pattern of the name of a Secret, a PersistentVolumeClaim and most other objects (RFC 1123
subdomain)."""
SUBDOMAIN_FORM: Final = re.compile(SUBDOMAIN_PATTERN)
_PORT: Final = (
    "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
)
HTTP_ADDRESS: Final = (
    f"https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:({_PORT}))?(/[A-Za-z0-9._~/-]*)?"
)
"""Pattern of the HTTP address of a server, without a user or a query."""
NAMESPACE_FORM: Final = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Pattern of the name of a namespace (RFC 1123 label)."""

ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(SUBDOMAIN_PATTERN, "must be a valid object name, such as gpu-high"),
]
"""Name of a cluster-scoped object, or of one in the LLMService's namespace."""

_Key = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches("[A-Za-z0-9._-]+", "must consist of letters, digits and . _ -, such as HF_TOKEN"),
]

_SecretName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(SUBDOMAIN_PATTERN, "must be the name of a Secret, such as hub-token"),
]


class SecretKey(Fields):
    name: _SecretName
    """Name of a Secret in the LLMService's namespace."""
    key: _Key
    """Key in that Secret."""


class ApiKeysSecret(Fields):
    name: _SecretName
    """Name of a Secret in the LLMService's namespace."""
    key: _Key | None = None
    """Key in that Secret. Its value is the only valid API key. Default: all keys of the Secret,
    each with one valid API key as its value."""


class ConfigMapKey(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=253),
        matches(SUBDOMAIN_PATTERN, "must be the name of a ConfigMap, such as chat-templates"),
    ]
    """Name of a ConfigMap in the LLMService's namespace."""
    key: _Key
    """Key in that ConfigMap."""


class KeySource(Fields):
    secret_key_ref: SecretKey | None = None
    """Key of a Secret. A change of its value takes effect when a container starts."""
    config_map_key_ref: ConfigMapKey | None = None
    """Key of a ConfigMap. A change of its value takes effect when a container starts."""

    rules: ClassVar = (
        Rule(
            "secretKeyRef",
            cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
            message="is an alternative to configMapKeyRef: set exactly one of the two",
            holds=lambda self: (self.secret_key_ref is None) != (self.config_map_key_ref is None),
        ),
    )


class ImagePullSecret(Fields):
    name: Annotated[
        str,
        Field(min_length=1, max_length=253),
        matches(SUBDOMAIN_PATTERN, "must be the name of a Secret, such as registry-login"),
    ]
    """Name of a Secret in the LLMService's namespace with credentials for an image registry."""
