"""Determines which of the operator's kinds the API server serves, and which are watched.

An optional kind, such as KEDA's ScaledObject, comes and goes with its CustomResourceDefinition. The
operator looks for it periodically. While it is absent, nothing lists, watches or writes it.
"""

import logging
from collections.abc import Mapping, Sequence

from llmservice_operator.cluster.client import Cluster
from llmservice_operator.errors import ClusterError, Forbidden, NotFound, NotServed
from llmservice_operator.kinds import Kind

logger = logging.getLogger(__name__)

DISCOVERY_PERIOD_SECONDS = 20.0
"""Time in seconds between two searches for the optional kinds. A search takes one request per kind,
and one more when the kind appears."""


class ServedKinds:
    def __init__(
        self,
        cluster: Cluster,
        namespaces: Sequence[str | None],
        required: Sequence[Kind],
        optional: Mapping[Kind, bool],
    ) -> None:
        """`optional` maps each optional kind to True if the operator was granted the rights on it.

        No request is sent for a kind without rights.
        """
        self._cluster = cluster
        self._namespaces = namespaces
        self._required = tuple(required)
        self._optional = optional
        self._found: frozenset[Kind] = frozenset()
        self.forbidden = frozenset(kind for kind, granted in optional.items() if not granted)
        """Optional kinds that the operator does not use, because the chart grants no rights on them
        or the API server refuses to list them."""

    @property
    def watched(self) -> tuple[Kind, ...]:
        """The kinds to list and watch now, the required ones first."""
        return (*self._required, *(kind for kind in self._optional if kind in self._found))

    def __contains__(self, kind: object) -> bool:
        """Return whether the kind can be used now: it is served, and the operator may watch it."""
        return kind in self._found or kind in self._required

    def is_optional(self, kind: Kind) -> bool:
        return kind in self._optional

    async def load(self) -> None:
        """Determine again which kinds are served.

        Raises NotServed if a required kind is not served, and ClusterError if the API server does
        not respond.
        """
        resources: dict[str, frozenset[str] | None] = {}
        for kind in self._required:
            path = kind.discovery_path
            if path not in resources:
                resources[path] = await self._look_up(path, is_first=not resources)
            found = resources[path]
            if found is not None and kind.plural not in found:
                raise NotServed(kind.kind, kind.api_version)
        # Every kind is listed again, because the right to do so may have been removed.
        await self._look(known=frozenset())

    async def refresh(self) -> bool:
        """Look for the optional kinds; return whether the set of kinds to watch has changed."""
        return await self._look(known=self._found)

    async def _look(self, known: frozenset[Kind]) -> bool:
        """Look for the optional kinds. A kind that is known to be listable is not listed again.

        The earlier result stays in place until the new one is complete, because passes use it
        meanwhile.
        """
        found, forbidden = set[Kind](), set[Kind]()
        for kind, granted in self._optional.items():
            if not granted:
                forbidden.add(kind)
                continue
            try:
                if kind.plural not in await self._cluster.list_resources(kind.discovery_path):
                    continue
                may_list = kind in known or await self._may_list(kind)
            except ClusterError as error:
                logger.warning("whether %s are served cannot be looked up: %s", kind.plural, error)
                may_list = kind in self._found
                if not may_list:
                    continue
            (found if may_list else forbidden).add(kind)
        changed = found != self._found
        self._found, self.forbidden = frozenset(found), frozenset(forbidden)
        return changed

    async def _may_list(self, kind: Kind) -> bool:
        """Return whether the kind can be listed in at least one namespace.

        A refusal may be temporary, because rights take effect some time after they are granted.
        """
        refusal = None
        for namespace in self._namespaces:
            try:
                async for _ in self._cluster.list_all(kind, namespace, limit=1):
                    break
            except Forbidden as error:
                refusal = error
            except NotFound:
                # Discovery still names a kind that has just been removed.
                return False
            else:
                return True
        if kind not in self.forbidden:
            logger.warning("%s are not used: a right is missing: %s", kind.plural, refusal)
        return False

    async def _look_up(self, path: str, *, is_first: bool) -> frozenset[str] | None:
        """Return the plurals of the kinds of a group, or None if discovery fails.

        If discovery fails, a later LIST shows whether a kind is served. Raises ClusterError if the
        first request gets no response at all.
        """
        try:
            return await self._cluster.list_resources(path)
        except ClusterError as error:
            if is_first and not error.status:
                raise
            logger.warning("the kinds at %s cannot be looked up: %s", path, error)
            return None
