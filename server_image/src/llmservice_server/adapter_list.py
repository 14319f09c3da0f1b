"""Reads the list of LoRA adapters, which the operator writes into a mounted ConfigMap."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_ADAPTERS = 64
"""Maximum number of adapters in each part of the list."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,252}")


@dataclass(frozen=True)
class Adapter:
    """One LoRA adapter. With a different source or revision, it is a different adapter."""

    name: str
    """Name that clients send as `model`."""

    source: str
    """Repository of the hub as ORGANISATION/NAME, or the absolute path of a folder."""

    revision: str | None = None
    """Branch, tag or commit of a repository; None is its main branch."""

    @property
    def digest(self) -> str:
        """Name of the folder with the adapter's files. It does not depend on the adapter's name."""
        identity = json.dumps([self.source, self.revision])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    @property
    def is_on_the_hub(self) -> bool:
        return not self.source.startswith("/")


@dataclass(frozen=True)
class AdapterList:
    """The adapters that a server loads, and the adapters that it serves to clients."""

    wanted: tuple[Adapter, ...] = ()
    served: tuple[Adapter, ...] | None = None
    """Adapters that every ready replica has loaded, so that clients may use them. When a name
    gets a new adapter, this field contains the previous adapter until every ready replica has
    loaded the new one. With None, each wanted adapter is served as soon as it is loaded."""

    @property
    def all(self) -> tuple[Adapter, ...]:
        """Every adapter that the server must load. The adapters for clients come first."""
        return tuple(dict.fromkeys((*(self.served or ()), *self.wanted)))

    @property
    def for_clients(self) -> tuple[Adapter, ...]:
        return self.wanted if self.served is None else self.served


def parse_list(text: str) -> AdapterList:
    """Return the list in a JSON text.

    Raises ValueError with the cause if the text is not a valid list.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the list is not a JSON object")
    served = found.get("served")
    return AdapterList(
        _adapters(found.get("adapters", [])), None if served is None else _adapters(served)
    )


def _adapters(items: object) -> tuple[Adapter, ...]:
    if not isinstance(items, list) or len(items) > MOST_ADAPTERS:
        raise ValueError(f"the adapters are not a list of at most {MOST_ADAPTERS}")
    adapters = tuple(_adapter(item) for item in items)
    if len({each.name for each in adapters}) < len(adapters):
        raise ValueError("two adapters have the same name")
    return adapters


def _adapter(item: object) -> Adapter:
    if not isinstance(item, Mapping):
        raise ValueError("an adapter is not a JSON object")
    name, source, revision = (item.get(field) for field in ("name", "source", "revision"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an adapter")
    if not isinstance(source, str) or not source:
        raise ValueError(f"the adapter {name} has no source")
    if revision is not None and not isinstance(revision, str):
        raise ValueError(f"the revision of the adapter {name} is not a text")
    return Adapter(name, source, revision)
