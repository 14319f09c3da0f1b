"""The list of LoRA adapters: those that the replicas load, and those that clients can use.

A replica loads every adapter of the list, and serves those that every ready replica has loaded.
Otherwise the response to a request would depend on the replica that receives the request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmservice_operator import names
from llmservice_operator.api import Manifest
from llmservice_operator.api.spec import LLMService
from llmservice_operator.desired.volumes import adapter_locations


@dataclass(frozen=True)
class ListedAdapter:
    """An adapter on the list. An adapter with another source or revision is another adapter."""

    name: str
    source: str
    """Repository of the hub, or folder of a mounted claim."""
    revision: str | None = None

    def as_json(self) -> dict[str, str]:
        found = {"name": self.name, "source": self.source, "revision": self.revision}
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class AdapterList:
    """The adapters that the spec requests, and those that clients can use."""

    wanted: tuple[ListedAdapter, ...]
    served: tuple[ListedAdapter, ...] | None
    """Adapters that clients can use. None means that each replica serves every adapter that it has
    loaded."""

    def render(self) -> str:
        """Return the list in the JSON form that the model server reads."""
        content = {"adapters": [each.as_json() for each in self.wanted]}
        if self.served is not None:
            content["served"] = [each.as_json() for each in self.served]
        return json.dumps(content)


def wanted_adapters(service: LLMService) -> tuple[ListedAdapter, ...]:
    """Return the adapters of the spec."""
    return tuple(
        ListedAdapter(adapter.name, location, adapter.revision)
        for adapter, location in zip(
            service.spec.model.adapters, adapter_locations(service), strict=True
        )
    )


def first_list(service: LLMService) -> AdapterList:
    """Return the list of a service without replicas.

    A replica becomes ready only when it has loaded the adapters of its list, so all of them are
    served.
    """
    wanted = wanted_adapters(service)
    return AdapterList(wanted, wanted)


def next_list(
    wanted: tuple[ListedAdapter, ...],
    before: Iterable[ListedAdapter],
    holdings: Iterable[frozenset[ListedAdapter] | None],
) -> AdapterList:
    """Return the next list. `before` contains the adapters that clients can use now.

    `holdings` contains the adapters of each ready replica, and None for a replica that does not
    respond. An adapter is served once every ready replica has loaded it. Until then, clients get
    the previous adapter of the same name. After that, the adapter remains served, because a replica
    that lacks it sends its clients to the other replicas.
    """
    earlier = {each.name: each for each in before}
    known = list(holdings)
    served = []
    for each in wanted:
        is_everywhere = bool(known) and all(has is not None and each in has for has in known)
        chosen = each if is_everywhere else earlier.get(each.name)
        if chosen is not None:
            served.append(chosen)
    return AdapterList(wanted, tuple(served))


def served_adapters(live: Manifest | None) -> tuple[ListedAdapter, ...]:
    """Return the adapters that clients can use according to the live ConfigMap.

    Any client may have changed the ConfigMap. If its content is not a list of adapters, the result
    is empty.
    """
    try:
        found = json.loads((live or {})["data"][names.ADAPTERS_FILE])["served"]
        return tuple(_listed(each) for each in found)
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _listed(item: Mapping[str, Any]) -> ListedAdapter:
    revision = item.get("revision")
    return ListedAdapter(
        str(item["name"]), str(item["source"]), None if revision is None else str(revision)
    )
