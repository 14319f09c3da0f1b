"""The reasons about the router; reasons.py lists them with all others."""

from __future__ import annotations

from typing import Final

from llmservice_operator.api.reason_facts import Facts, Source

_LOOK: Final = "Look at `kubectl describe pods -l llmservice.dev/router-of=NAME`"

ROUTER_SERVING: Final = Facts(
    "RouterServing",
    Source.ROUTER,
    "Clients or Gateways reach the router, and all of its pods are ready.",
    "Nothing.",
    is_normal=True,
)
ROUTER_STARTING: Final = Facts(
    "RouterStarting",
    Source.ROUTER,
    "Not all router pods are ready yet. Clients and Gateways reach the replicas directly until "
    "then.",
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
    "Some router pods are not ready. If router.mode is InferencePool and none is ready, Gateways "
    "choose the replicas themselves.",
    f"{_LOOK}.",
)
INFERENCE_POOL_MISSING: Final = Facts(
    "InferencePoolMissing",
    Source.ROUTER,
    "The cluster lacks the Gateway API Inference Extension, or the operator has no right to use "
    "it.",
    "Install its resource definitions, version 1.0 or newer, or remove spec.router.mode. The "
    "operator needs no restart.",
)
ROUTER_NOT_READY: Final = Facts(
    "RouterNotReady",
    Source.ROUTER,
    "Clients reach the router, and none of its pods is ready, so no request is answered.",
    f"{_LOOK}, or set spec.router.enabled to false, so that clients reach the replicas directly. "
    "With spec.service.tls, check that its Secret exists.",
)
