"""Finds the reason why the API server refuses a pod, and whether the pod would be accepted after
an old pod has ended.

The API server has no codes for the causes, so the operator recognizes them by the words of the
message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.api.fields import quantity_value
from llmservice_operator.api.reasons import Reason
from llmservice_operator.workload.pod_problems import Problem, with_hint

_LIMITS_ARE_MISSING: Final = re.compile("failed quota: .* must specify ")
LIMIT_RANGE_WORDS: Final = re.compile(
    r"(maximum|minimum) \S+ usage per \w+ is |max limit to request ratio per "
)
_QUOTA: Final = re.compile(
    r"exceeded quota: [^,]+, requested: (?P<requested>\S+), used: (?P<used>\S+), "
    r"limited: (?P<limited>\S+)"
)
_AMOUNT: Final = re.compile(r"([^=,]+)=([^=,]+)")


def refusal_problem(said: str, what: str = "pod") -> Problem:
    """Return the problem that the API server's message about a refused pod describes.

    `what` names the refused object, if it is not a pod but an object that makes the pods.
    """
    if "exceeded quota" in said:
        said = f"A ResourceQuota of the namespace refuses the {what}: {said}"
        return with_hint(Reason.QUOTA_EXCEEDED, said)
    if _LIMITS_ARE_MISSING.search(said):
        said = f"A ResourceQuota of the namespace wants limits that the pod does not set: {said}"
        return with_hint(Reason.LIMITS_REQUIRED, said)
    if LIMIT_RANGE_WORDS.search(said):
        said = f"A LimitRange of the namespace refuses the pod: {said}"
        return with_hint(Reason.LIMIT_RANGE_EXCEEDED, said)
    return with_hint(Reason.POD_REFUSED, f"The API server refuses the {what}: {said}")


def fits_after_one_ends(said: str, old: Iterable[Manifest]) -> bool:
    """Return whether the quota accepts the refused pod once any one of the old pods has
    ended.

    Otherwise, ending an old pod would remove a replica without a replacement.
    """
    quota, pods = _QUOTA.search(said), list(old)
    if quota is None or not pods:
        return False
    requested, used, limited = (
        dict(_AMOUNT.findall(quota[part])) for part in ("requested", "used", "limited")
    )
    return bool(requested) and all(
        _fits(resource, requested, used, limited, pods) for resource in requested
    )


def _fits(
    resource: str,
    requested: dict[str, str],
    used: dict[str, str],
    limited: dict[str, str],
    old: Iterable[Manifest],
) -> bool:
    amounts = [quantity_value(each.get(resource, "").rstrip(".")) for each in (requested, used)]
    limit = quantity_value(limited.get(resource, "").rstrip("."))
    if limit is None or None in amounts:
        return False
    freed = min(_amount_of(pod, resource) for pod in old)
    return sum((each for each in amounts if each is not None), Decimal()) - freed <= limit


def _amount_of(pod: Manifest, resource: str) -> Decimal:
    """Return the amount of a quota's resource that a pod uses.

    Sidecars run together with the containers. Other init containers run before them, one after
    another.
    """
    if resource in ("pods", "count/pods"):
        return Decimal(1)
    kind, _, name = resource.partition(".")
    if kind not in ("requests", "limits"):
        kind, name = "requests", resource

    def amount(container: dict[str, Any]) -> Decimal:
        amounts = (container.get("resources") or {}).get(kind) or {}
        return quantity_value(amounts.get(name, 0)) or Decimal()

    spec = pod.get("spec") or {}
    sidecars = most_at_start = Decimal()
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            sidecars += amount(container)
            most_at_start = max(most_at_start, sidecars)
        else:
            most_at_start = max(most_at_start, sidecars + amount(container))
    running = sidecars + sum(map(amount, spec.get("containers") or []), Decimal())
    overhead = quantity_value((spec.get("overhead") or {}).get(name, 0)) or Decimal()
    return max(running, most_at_start) + overhead
