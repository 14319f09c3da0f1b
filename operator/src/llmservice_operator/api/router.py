"""spec.router: the pods that choose a replica for each request."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Quantity, Rule, quantity_value
from llmservice_operator.api.pods import amount_of, request_within_limit

BASE_MEBIBYTES: Final = 384
"""Memory in MiB of a router pod that holds no request: about 130 MiB while it is idle, plus the
maximum for bodies in transit, indexes and connections."""
KIBIBYTES_OF_HELD_REQUEST: Final = 128
"""Memory in KiB that a router pod needs for each request that it holds."""


class RouterAmounts(Fields):
    cpu: Quantity | None = None
    """CPU cores, such as 1 or 500m."""
    memory: Quantity | None = None
    """Memory, such as 512Mi."""


class RouterResources(Fields):
    requests: RouterAmounts | None = None
    """Resources that a node must have free for each router pod. Default for a resource with a
    limit: the limit. Default without a limit: 100m cores and 256Mi of memory."""
    limits: RouterAmounts | None = None
    """Maximum resources of each router pod. Default: 384Mi of memory plus 128Ki for each request of
    maxHeldRequests, and no limit for the CPU."""

    rules: ClassVar = (request_within_limit("cpu"), request_within_limit("memory"))


class RouterMode(StrEnum):
    PROXY = "Proxy"
    INFERENCE_POOL = "InferencePool"


class Router(Fields):
    enabled: bool | None = None
    """Whether router pods choose the replica of each request. Default: a service that has a
    router keeps it. For any other service: true if service.tls or auth.limits is set, mode is
    InferencePool, or autoscaling.minReplicas is 0; otherwise true if the chart value
    router.enabledByDefault is true and the service may have more than one replica; else false."""
    mode: RouterMode = RouterMode.PROXY
    """Path of the requests. Proxy: clients of the Service object reach the replicas through the
    router pods. InferencePool: Gateways reach the replicas directly, and ask the router pods for
    the replica of each request. The operator then creates an InferencePool
    (inference.networking.k8s.io/v1) with the name of the LLMService, and the Service object leads
    to the replicas without a router. The cluster needs the Gateway API Inference Extension, and a
    user who sets InferencePool needs the right to create inferencepools in the namespace. Default:
    Proxy."""
    replicas: Annotated[int, Field(ge=1, le=10)] = 2
    """Number of router pods. With one pod, the service is unavailable while this pod is replaced
    after a failure."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Container image of the router. Default: the chart value router.image."""
    resources: RouterResources = RouterResources()
    """CPU and memory of each router pod."""
    hold_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = 300
    """Longest time in seconds that a request waits in the router for a replica. After that, it is
    refused with status 503. With 0, no request waits in the router."""
    max_held_requests: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Maximum number of requests that wait in each router pod. Each waiting request needs 128Ki of
    memory. Further requests are refused with status 503."""
    policy: Literal["LeastWork", "LeastRequest"] = "LeastWork"
    """Choice of the replica. LeastWork: the replica with the shortest expected time to the first
    token, which the router estimates from the replica's work in seconds and the prompts in its
    prefix cache. LeastRequest: the replica with the fewest requests."""
    heartbeat_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Time in seconds between two comments that the router sends to a client whose request for a
    stream waits. Without the comments, some proxies would close the idle connection. A client
    that measures the time to the first byte measures the time to the first comment."""

    rules: ClassVar = (
        Rule(
            "mode",
            cel="self.mode == 'Proxy' || !has(self.enabled) || self.enabled",
            message="has no effect without the router: remove it, or remove enabled: false",
            holds=lambda router: router.mode is RouterMode.PROXY or router.enabled is not False,
        ),
        Rule(
            "resources.limits.memory",
            cel="!has(self.resources) || !has(self.resources.limits) || "
            "!has(self.resources.limits.memory) || "
            "!isQuantity(string(self.resources.limits.memory)) || "
            "quantity(string(self.resources.limits.memory)).asApproximateFloat() >= "
            f"double(self.maxHeldRequests) * {KIBIBYTES_OF_HELD_REQUEST * 1024}.0 + "
            f"{BASE_MEBIBYTES * 1024**2}.0",
            message="is less than 384Mi plus 128Ki for each request of maxHeldRequests: raise it, "
            "or lower maxHeldRequests",
            holds=lambda router: router.memory_suffices,
        ),
    )

    @property
    def memory_suffices(self) -> bool:
        """Whether the memory limit, if there is one, suffices for the held requests."""
        limit = amount_of(self.resources.limits, "memory")
        return limit is None or limit >= self._needed_mebibytes * 1024**2

    @property
    def memory_limit(self) -> str:
        """Memory limit of a router pod, as a quantity."""
        limits, requests = self.resources.limits, self.resources.requests
        if limits is not None and limits.memory is not None:
            return limits.memory
        asked = None if requests is None else requests.memory
        needed = f"{math.ceil(self._needed_mebibytes)}Mi"
        return max(filter(None, (needed, asked)), key=lambda each: quantity_value(each) or 0)

    @property
    def _needed_mebibytes(self) -> float:
        return BASE_MEBIBYTES + self.max_held_requests * KIBIBYTES_OF_HELD_REQUEST / 1024
