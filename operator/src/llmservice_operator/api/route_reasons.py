"""The reasons about the HTTPRoute; reasons.py lists them with all others."""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reason_facts import Facts, Source

ROUTE_ACCEPTED: Final = Facts(
    "RouteAccepted",
    Source.ROUTE,
    "Every Gateway accepts the route and finds its backend.",
    "Nothing.",
    is_normal=True,
)
ROUTE_PENDING: Final = Facts(
    "RoutePending",
    Source.ROUTE,
    "The controller of a Gateway has not reported on the present route.",
    "Wait. If it takes more than a minute, check that the Gateway exists, and that a controller "
    "runs for its GatewayClass.",
    is_normal=True,
)
ROUTE_REFUSED: Final = Facts(
    "RouteRefused",
    Source.ROUTE,
    "A Gateway does not accept the route.",
    "For NotAllowedByListeners, let a listener admit the namespace of the service (allowedRoutes). "
    "For NoMatchingListenerHostname, correct spec.route.hostnames. For NoMatchingParent, correct "
    "sectionName in spec.route.parentRefs.",
)
ROUTE_UNRESOLVED: Final = Facts(
    "RouteUnresolved",
    Source.ROUTE,
    "A Gateway accepts the route, but cannot use its backend.",
    "Look at `kubectl describe httproute/NAME`.",
)
GATEWAY_API_MISSING: Final = Facts(
    "GatewayAPIMissing",
    Source.ROUTE,
    "The cluster lacks the Gateway API, or the operator has no right to use it.",
    "Install the resource definitions of the Gateway API, version 1.2 or newer, or remove "
    "spec.route. The operator needs no restart.",
)
