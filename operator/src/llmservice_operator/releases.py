"""Recognises services that several releases of the operator serve.

All releases use the same field manager, so an object does not show which release wrote it. If they
also write the same content, none of them notices the others. So each release enters its name in
`status.operators` of every service that it serves.

A release cannot know when another one ends. From time to time, it therefore replaces a list of
several names by its own name. Every release that still serves the service then enters its name
again.

The module does not access Kubernetes. Its callers pass the time as an argument.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import datetime, timedelta
from typing import Final

from llmservice_operator.api.status import OPERATORS_LIMIT

RENEWAL: Final = timedelta(minutes=10)
"""Time after which a release starts a list of several names anew. A release that has ended
disappears from the status after this time."""

SHARED_SERVICE: Final = "SharedService"
"""Reason of the Event about a service that several releases serve."""


class Releases:
    def __init__(self, own: str) -> None:
        """`own` is the name of this release, which no other release in the cluster has."""
        self._own = own
        self._entered: dict[Hashable, datetime] = {}
        """For each service that this release has entered, the time at which the release was last
        alone in the list, or last entered its name again."""

    def choose(self, service: Hashable, listed: Sequence[str], now: datetime) -> tuple[str, ...]:
        """Return the new list of a service whose status lists the releases `listed`."""
        entered = self._entered.get(service)
        if self._own not in listed:
            if entered is None:
                # This release has probably replaced the listed one. If the listed one still serves
                # the service, it enters its name again.
                return (self._own,)
            self._entered[service] = now
        elif len(listed) > 1 and entered is not None and now - entered >= RENEWAL:
            return (self._own,)
        return tuple(sorted({self._own, *listed})[:OPERATORS_LIMIT])

    def wrote(self, service: Hashable, operators: Sequence[str], now: datetime) -> None:
        """Record that the status of a service contains the list that `choose` has returned."""
        if len(operators) == 1 or service not in self._entered:
            self._entered[service] = now

    def forget(self, service: Hashable) -> None:
        """Drop the state of a service that no longer exists."""
        self._entered.pop(service, None)


def say_shared(operators: Sequence[str]) -> tuple[str, ...]:
    """Return the message about a service that several releases serve; an empty tuple if at most one
    release serves it.

    The message is the same in every release, so that the releases do not overwrite each other's
    status.
    """
    if len(operators) < 2:
        return ()
    return (
        f"Several releases of the operator serve this namespace: {', '.join(operators)}. Set the "
        "chart value watchNamespaces so that only one of them serves it. A release without this "
        "value serves every namespace.",
    )
