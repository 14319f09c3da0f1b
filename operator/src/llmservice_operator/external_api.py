"""Reads the APIService that routes requests for external metrics to the metrics server.

A cluster has one APIService of this name, and another component may own it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmservice_operator import names

_WITHOUT_SERVER: Final = {"ServiceNotFound", "EndpointsNotFound", "MissingEndpoints"}
"""Reasons of the API server for an APIService behind whose Service object no pod is ready."""


def is_ours(live: Mapping[str, Any], namespace: str, service: str) -> bool:
    """Return whether the APIService has the operator's label and points to this Service object."""
    labels = live["metadata"].get("labels") or {}
    target = live["spec"].get("service") or {}
    return bool(
        labels.get(names.MANAGED_BY_LABEL) == names.FIELD_MANAGER
        and (target.get("namespace"), target.get("name")) == (namespace, service)
    )


def availability(live: Mapping[str, Any]) -> bool | None:
    """Return whether the API server reaches the server of the APIService; None if it does not say
    so.
    """
    return {"True": True, "False": False}.get(_available(live).get("status", ""))


def has_no_server(live: Mapping[str, Any]) -> bool:
    """Return whether the API server says that no pod is ready behind the APIService.

    A server that is ready and cannot be reached is no such case.
    """
    return availability(live) is False and _available(live).get("reason") in _WITHOUT_SERVER


def _available(live: Mapping[str, Any]) -> Mapping[str, str]:
    conditions = (live.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == "Available"), {})
