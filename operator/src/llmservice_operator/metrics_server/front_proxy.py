"""Reads the user of a request from its headers, after a check of the API server's client
certificate.

The API server keeps the authorities and the header names in the ConfigMap
kube-system/extension-apiserver-authentication. The ConfigMap is read repeatedly, because
authorities are rotated.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

CONFIG_NAMESPACE = "kube-system"
CONFIG_NAME = "extension-apiserver-authentication"


class Unauthenticated(Exception):
    """The request does not come from the API server, or names no user."""


_AUTHENTICATED, _UNAUTHENTICATED = "system:authenticated", "system:unauthenticated"


@dataclass(frozen=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def access_review(self) -> dict[str, Any]:
        """Part of a SubjectAccessReview's spec that names the user."""
        return {
            "user": self.name,
            "groups": list(self.groups),
            "extra": {key: list(values) for key, values in self.extra.items()},
        }


@dataclass(frozen=True)
class FrontProxy:
    """Authentication of the API server to the metrics server, and the headers that contain the
    user.
    """

    client_authorities: str
    """PEM certificates of the authorities that sign the API server's client certificate."""
    allowed_names: tuple[str, ...]
    """Common names that the API server's client certificate may have. An empty tuple allows any
    name."""
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]

    @classmethod
    def from_config(cls, config_map: Mapping[str, Any]) -> Self | None:
        """Return the front proxy in the ConfigMap; None if the ConfigMap names none or is
        malformed.
        """
        data = config_map.get("data") or {}

        def texts(key: str) -> tuple[str, ...]:
            return tuple(str(each) for each in json.loads(data.get(key) or "[]"))

        try:
            found = cls(
                client_authorities=data.get("requestheader-client-ca-file", ""),
                allowed_names=texts("requestheader-allowed-names"),
                user_headers=texts("requestheader-username-headers"),
                group_headers=texts("requestheader-group-headers"),
                extra_prefixes=texts("requestheader-extra-headers-prefix"),
            )
        except (ValueError, TypeError):
            return None
        return found if found.client_authorities.strip() and found.user_headers else None

    def user(self, certificate: Mapping[str, Any] | None, headers: CIMultiDictProxy[str]) -> User:
        """Return the user of a request whose client has this verified certificate.

        `certificate` is in the form of SSLSocket.getpeercert. Raises Unauthenticated if the
        certificate is not that of the API server, or if the request names no user.
        """
        names = {
            value
            for part in (certificate or {}).get("subject", ())
            for key, value in part
            if key == "commonName"
        }
        if not certificate or (self.allowed_names and names.isdisjoint(self.allowed_names)):
            raise Unauthenticated("the client's certificate is not that of the API server")
        name = next((headers[it] for it in self.user_headers if headers.get(it)), None)
        if name is None:
            raise Unauthenticated("the request names no user")
        groups = [value for it in self.group_headers for value in headers.getall(it, [])]
        if not {_AUTHENTICATED, _UNAUTHENTICATED} & set(groups):
            # The API server sends one of the two groups with every user, but neither of them with
            # its own requests. Its requests are accepted, too. A refusal of its discovery requests
            # would block the deletion of every namespace, because this API could have objects in
            # the namespace.
            groups.append(_AUTHENTICATED)
        return User(name, tuple(groups), self._extra(headers))

    def _extra(self, headers: CIMultiDictProxy[str]) -> dict[str, tuple[str, ...]]:
        extra: dict[str, tuple[str, ...]] = {}
        for header, value in headers.items():
            for prefix in self.extra_prefixes:
                if header.lower().startswith(prefix.lower()):
                    # Keys may contain characters that are not allowed in a header name, so they
                    # arrive percent-encoded.
                    key = urllib.parse.unquote(header[len(prefix) :].lower())
                    extra[key] = (*extra.get(key, ()), value)
        return extra
