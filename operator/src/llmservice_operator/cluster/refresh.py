"""Brings one object of the cache up to date, without waiting for its event."""

from llmservice_operator.cluster.cache import Cache
from llmservice_operator.cluster.client import Cluster
from llmservice_operator.kinds import Kind


async def refresh(cluster: Cluster, cache: Cache, kind: Kind, namespace: str, name: str) -> None:
    """Read an object and update the cache. If the object does not exist, drop it from the cache.

    Raises ClusterError when the object cannot be read.
    """
    live = await cluster.read(kind, namespace, name)
    known = cache.get(kind, namespace, name)
    if live is not None:
        cache.observe(live)
    elif known is not None:
        cache.drop(known)
