"""The objects of one kind as the API server last told: listed once, then kept by a watch.

For a process that only reads. The operator itself keeps a Cache, which also knows its own writes.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from llmservice_operator.api import Manifest
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.errors import ClusterError, Gone
from llmservice_operator.kinds import Kind

logger = logging.getLogger(__name__)

Name = tuple[str, str]
"""Namespace, empty for an object of the cluster, and name."""

LONGEST_WAIT_SECONDS = 15.0
PAUSE_SECONDS = 0.2


class Watched:
    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        namespace: str | None = None,
        name: str = "",
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Namespace None means all; with `name` only that object is read, for rights by name."""
        self.kind = kind
        self.loaded = asyncio.Event()
        """Set once `objects` holds all there is."""
        self.problem: str | None = None
        """Why the API server does not tell at the moment; None while it does."""
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._changed = changed
        self._objects: dict[Name, Manifest] = {}

    @property
    def objects(self) -> Mapping[Name, Manifest]:
        return self._objects

    async def run(self) -> None:
        """List and watch for ever. `changed` is called after every change of `objects`."""
        wait = 1.0
        while True:
            try:
                version = await self._list()
                wait = 1.0
                while True:
                    version = await self._follow(version)
                    # A server, or a proxy, that ends every watch at once must not keep us busy.
                    await asyncio.sleep(PAUSE_SECONDS)
            except Gone:
                continue
            except ClusterError as error:
                self.problem = str(error)
                logger.warning("%s; again in about %.0f s", error, wait)
                await asyncio.sleep(wait * random.uniform(0.8, 1.2))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _list(self) -> str:
        found, version = await self._cluster.list_for_watch(self.kind, self._namespace, self._name)
        self._objects = {_name(manifest): _trimmed(manifest) for manifest in found}
        self.problem = None
        self.loaded.set()
        self._changed()
        return version

    async def _follow(self, version: str) -> str:
        """Take over what one watch tells; return the version from which the next one goes on."""
        async for event in self._cluster.watch(self.kind, self._namespace, version, self._name):
            manifest = event["object"]
            version = manifest["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            if event["type"] == "DELETED":
                self._objects.pop(_name(manifest), None)
            else:
                self._objects[_name(manifest)] = _trimmed(manifest)
            self._changed()
        return version


def _name(manifest: Manifest) -> Name:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _trimmed(manifest: Manifest) -> Manifest:
    """Leave out who owns which field: half of the bytes, and nobody here asks."""
    metadata = {k: v for k, v in manifest["metadata"].items() if k != "managedFields"}
    return {**manifest, "metadata": metadata}
