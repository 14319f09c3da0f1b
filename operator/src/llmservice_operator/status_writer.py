"""Writes the status of a service, even if the cluster's CRD is older than the operator.

The API server refuses a whole status because of one field that its schema does not contain. The
operator omits such fields, so that the rest of the status is reported.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice_operator.api import Manifest
from llmservice_operator.cluster import Cache, Cluster, is_same_version
from llmservice_operator.convergence import ConvergenceGuard, Name
from llmservice_operator.desired.comparison import find_differences
from llmservice_operator.errors import ClusterError

logger = logging.getLogger(__name__)

TRY_AGAIN_SECONDS = 300.0
"""Time in seconds after which the fields that the CRD lacked are sent again, because the CRD may
have been upgraded."""
_UNKNOWN_FIELD = re.compile(r"\.status((?:\.\w+|\[[^\]]*\])+): field not declared in schema")

Path = tuple[str, ...]
"""Path of field names, starting below the status. Indexes of lists are left out."""


@dataclass(frozen=True)
class Written:
    """Result of writing a status."""

    is_changed: bool
    has_newer_spec: bool = False
    """Whether the response contains a later spec than the pass has read."""
    look_again_seconds: float | None = None
    """Time in seconds after which the status may be written again; None if its writes are not
    paused. They are paused while another client changes the status back."""


class StatusWriter:
    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        guard: ConvergenceGuard,
        on_problem: Callable[[str | None], None],
    ) -> None:
        """`on_problem` is called with the problem of the CRD, and with None once it is solved."""
        self._cluster = cluster
        self._cache = cache
        self._guard = guard
        self._on_problem = on_problem
        self._unknown: frozenset[Path] = frozenset()
        """Fields that the cluster's CRD does not know."""
        self._found_out_at = 0.0

    async def write(self, body: Manifest, status: Mapping[str, Any]) -> Written:
        """Apply the status to the service `body` if the service's present status differs.

        Raises ClusterError if the API server refuses the status.
        """
        now, metadata = asyncio.get_running_loop().time(), body["metadata"]
        tried = self._unknown
        if tried and now - self._found_out_at > TRY_AGAIN_SECONDS:
            tried = frozenset()
        wanted = {"status": without(status, tried)}
        differences = list(find_differences(body, wanted, "status"))
        if not differences:
            return Written(False)
        known_as: Name = ((metadata["namespace"], metadata["name"]), "status")
        pause = self._guard.pause(known_as, wanted, differences, now)
        if pause is not None:
            logger.warning(
                "the status is left alone for %.0f s: another client changes %s back",
                pause.seconds,
                differences[0].path,
            )
            return Written(False, look_again_seconds=pause.seconds)
        stored = await self._apply(body, status, tried, now)
        self._cache.observe(stored)
        self._guard.wrote(known_as, wanted, differences, [], now)
        return Written(
            not is_same_version(stored, body),
            stored["metadata"].get("generation") != metadata.get("generation"),
        )

    async def _apply(
        self, body: Manifest, status: Mapping[str, Any], unknown: frozenset[Path], now: float
    ) -> Manifest:
        while True:
            try:
                stored = await self._send(body, without(status, unknown))
            except ClusterError as error:
                found = unknown_fields(error.message) - unknown
                if not found:
                    raise
                unknown |= found
            else:
                break
        if unknown != self._unknown:
            self._tell(unknown)
        if unknown:
            self._found_out_at = now
        self._unknown = unknown
        return stored

    def _tell(self, unknown: frozenset[Path]) -> None:
        if not unknown:
            logger.info("the LLMService CRD knows every field of the status again")
            self._on_problem(None)
            return
        fields = ", ".join(sorted(f"status.{'.'.join(path)}" for path in unknown))
        problem = (
            f"the cluster's LLMService CRD is older than the operator and lacks {fields}, which is "
            "left out: apply crds/llmservice.yaml of the operator's version, or install the chart "
            "with crds.install=true"
        )
        logger.error("%s", problem)
        self._on_problem(problem)

    async def _send(self, body: Manifest, status: Mapping[str, Any]) -> Manifest:
        metadata = body["metadata"]
        return await self._cluster.apply_status(
            {
                "apiVersion": body["apiVersion"],
                "kind": body["kind"],
                # With the uid, the write cannot reach a new service of the same name.
                "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
                "status": dict(status),
            }
        )


def unknown_fields(refusal: str) -> frozenset[Path]:
    """Return the fields of the status that the schema lacks, according to the API server's
    message.
    """
    found = (re.sub(r"\[[^\]]*\]", "", path) for path in _UNKNOWN_FIELD.findall(refusal))
    return frozenset(tuple(path.strip(".").split(".")) for path in found)


def without(value: Any, paths: Collection[Path]) -> Any:
    """Return the value without the fields at these paths.

    A path applies to every item of a list.
    """
    if not paths:
        return value
    if isinstance(value, list):
        return [without(each, paths) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: without(each, [path[1:] for path in paths if path[0] == key and len(path) > 1])
        for key, each in value.items()
        if (key,) not in paths
    }
