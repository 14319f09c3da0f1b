"""The HTTPRoute through which the user's Gateways lead to the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.children.child import Child, Context
from llmservice_operator.desired.client_paths import CLIENT_PATHS
from llmservice_operator.desired.environment import request_timeout_seconds
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.kinds import HTTP_ROUTES, INFERENCE_POOLS

GATEWAY_MARGIN_SECONDS: Final = 15
"""Time in seconds by which the limits of the Gateway exceed those of the service, so that clients
get the service's own error, not that of the Gateway."""


def _body(context: Context) -> Manifest | None:
    route = context.service.spec.route
    if route is None:
        return None
    # A list of the HTTPRoute has one owner, so the defaults of its items are sent, too. Otherwise
    # the stored list would differ.
    parents = [
        {
            "group": HTTP_ROUTES.group,
            **each.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        for each in route.parent_refs
    ]
    return {
        "spec": {
            "parentRefs": parents,
            **({"hostnames": [*route.hostnames]} if route.hostnames else {}),
            "rules": [
                {
                    "matches": build_matches(CLIENT_PATHS),
                    "timeouts": _timeouts(context),
                    "backendRefs": [_backend(context)],
                }
            ],
        }
    }


def build_matches(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Return the matches for paths with names in braces.

    Gateways need not support regular expressions, so a name in braces becomes a prefix match, which
    also matches further paths below. The model server refuses those that it does not serve.
    """
    paths = tuple(paths)
    prefixes = dict.fromkeys(path.partition("/{")[0] for path in paths if "{" in path)
    plain = (path for path in paths if "{" not in path and path not in prefixes)
    return [
        {"path": {"type": kind, "value": path}}
        for kind, values in (("Exact", plain), ("PathPrefix", prefixes))
        for path in values
    ]


def _timeouts(context: Context) -> dict[str, str]:
    """Return the limits for a whole answer, which is a stream for most clients.

    Without limits here, a Gateway would end streams after its own default, such as 15 seconds.
    """
    longest = request_timeout_seconds(context.service.spec)
    if longest and context.router.exists:
        longest += context.service.spec.router_settings.hold_timeout_seconds
    seconds = f"{longest + GATEWAY_MARGIN_SECONDS}s" if longest else "0s"  # 0s sets no limit
    return {"request": seconds, "backendRequest": seconds}


def _backend(context: Context) -> dict[str, Any]:
    if context.router.serves_pool:
        return {
            "group": INFERENCE_POOLS.group,
            "kind": INFERENCE_POOLS.kind,
            "name": names.inference_pool(context.service),
            "weight": 1,
        }
    return {
        "group": "",
        "kind": "Service",
        "name": names.kubernetes_service(context.service),
        "port": context.service.spec.service.port,
        "weight": 1,
    }


def _refuse_old_definitions(_: Manifest, refusal: str) -> Manifest | None:
    # Without the limits, a Gateway would end streams after its own default.
    if ".timeouts" in refusal:
        raise InvalidSpec(
            "needs the Gateway API 1.2 or newer: upgrade its resource definitions", "spec.route"
        )
    return None


CHILD: Final = Child(
    kind=HTTP_ROUTES,
    body=_body,
    name=names.route,
    is_pruned=True,
    is_optional_api=True,
    substitute=_refuse_old_definitions,
)
