"""The reasons about the router; reasons.py lists them with all others."""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reason_facts import Facts, Source

_LOOK: Final = "Look at `kubectl describe pods -l llmservice.dev/router-of=NAME`"

ROUTER_SERVING: Final = Facts(
    "RouterServing",
    Source.ROUTER,
    "Clients reach the router, and all of its pods are ready.",
    "Nothing.",
    is_normal=True,
)
ROUTER_STARTING: Final = Facts(
    "RouterStarting",
    Source.ROUTER,
    "Not all router pods are ready yet. Clients reach the replicas directly until then.",
    f"Wait. {_LOOK} if it takes more than a few minutes.",
    is_normal=True,
)
ROUTER_STOPPING: Final = Facts(
    "RouterStopping",
    Source.ROUTER,
    "The router is switched off. Its pods remain until requests of older connections have ended.",
    "Wait.",
    is_normal=True,
)
ROUTER_DEGRADED: Final = Facts(
    "RouterDegraded",
    Source.ROUTER,
    "Clients reach the router, and some of its pods are not ready.",
    f"{_LOOK}.",
)
ROUTER_NOT_READY: Final = Facts(
    "RouterNotReady",
    Source.ROUTER,
    "Clients reach the router, and none of its pods is ready, so no request is answered.",
    f"{_LOOK}, or set spec.router.enabled to false, so that clients reach the replicas directly. "
    "With spec.service.tls, check that its Secret exists.",
)
