"""Reads from an LLMService whether its router may wait for a replica."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from llmservice_operator.api import Manifest
from llmservice_operator.api.autoscaling import ScalingMode
from llmservice_operator.api.conditions import ConditionType
from llmservice_operator.api.reason_facts import Subject
from llmservice_operator.api.reasons import Reason

SETTLED_SECONDS: Final = 20.0
"""Time in seconds after which a problem of a new replica is final. A download of an image, for
example, may fail once."""
ROOM_SECONDS: Final = 180.0
"""Time in seconds after which a lack of room is final. An autoscaler of nodes may add a node."""


def may_wake(manifest: Manifest) -> bool:
    """Return whether the next request wakes the service when it has no replicas."""
    autoscaling = manifest.get("spec", {}).get("autoscaling") or {}
    return (
        autoscaling.get("minReplicas") == 0
        and autoscaling.get("mode", ScalingMode.ACTIVE) == ScalingMode.ACTIVE
        and why_gone(manifest) is None
    )


def why_gone(manifest: Manifest | None) -> str | None:
    """Return why the service will have no replica; None if it may have one."""
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return "the service is deleted; send the request to another service"
    if manifest.get("spec", {}).get("suspend"):
        return "the service is suspended; send the request again when it is resumed"
    return None


class Refusal(NamedTuple):
    """Why no replica of a service will start, for the clients of the service."""

    why: str
    begins: float
    """Unix time in seconds from which requests are refused. Until then, a replica may start."""


def refusal_of(manifest: Manifest | None) -> Refusal | None:
    """Return why no replica will start; None if one may start.

    The reason in the status must be final and about the replicas. The sentence does not contain its
    message, because the message is not meant for the clients of the service.
    """
    gone = why_gone(manifest)
    if gone is not None:
        return Refusal(gone, -math.inf)
    ready = _condition(manifest, ConditionType.READY)
    if ready.get("status") != "False":
        return None
    if ready.get("reason") == _condition(manifest, ConditionType.PROGRESSING).get("reason"):
        # Both have the reason of an object that could not be applied, such as a route over a quota.
        # Replicas may start without it.
        return None
    reason = Reason.named(str(ready.get("reason")))
    if reason is None or not reason.is_final:
        return None
    patience = ROOM_SECONDS if reason.about is Subject.ROOM else SETTLED_SECONDS
    try:
        since = datetime.fromisoformat(str(ready.get("lastTransitionTime")))
    except ValueError:
        return None
    why = f"the service cannot start ({reason}): {reason.meaning} Send the request again later"
    return Refusal(why, since.timestamp() + patience)


def _condition(manifest: Manifest | None, kind: ConditionType) -> Mapping[str, Any]:
    conditions = (manifest or {}).get("status", {}).get("conditions") or ()
    return next((it for it in conditions if it.get("type") == kind), {})
