"""Reads the versions of the objects in a list, and skips the rest of the objects.

The audit lists all objects of the cluster again and again. Most of its CPU time would go into
objects that it then does not look at, so the API server leaves out specs and statuses, and the
parser makes no Python objects of the field ownership.
"""

import json
from typing import Final

from pydantic import BaseModel, Field

PARTIAL: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
"""Value of Accept with which the API server lists only the metadata of objects. A server that
cannot do that lists whole objects."""


class _Metadata(BaseModel):
    name: str
    namespace: str = ""
    version: int = Field(alias="resourceVersion")


class _Item(BaseModel):
    metadata: _Metadata


class _Head(BaseModel):
    next_page: str = Field("", alias="continue")


class Page(BaseModel):
    """One page of a list."""

    metadata: _Head
    items: tuple[_Item, ...] | None = None

    @property
    def versions(self) -> dict[tuple[str, str], int]:
        """The resource version of each object, by namespace and name."""
        found = (each.metadata for each in self.items or ())
        return {(each.namespace, each.name): each.version for each in found}


def page_of(text: bytes) -> Page:
    """Return the page in a response. Raises ValueError if it contains none."""
    try:
        return Page.model_validate_json(text)
    except ValueError:
        # This parser refuses what any tenant may store, such as deeply nested field ownership. One
        # such object must not hide all others.
        try:
            found = json.loads(text)
        except RecursionError as error:
            raise ValueError("the list is nested too deeply") from error
        return Page.model_validate(found)
