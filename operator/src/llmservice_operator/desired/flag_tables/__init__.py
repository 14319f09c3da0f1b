"""The flags of each vLLM version, as its own parser lists them: one data file a version.

`make flag-tables V=...` writes the file, and a file in this folder is a version that is supported.
A file is never removed while a service may be pinned to its version. In it stands, for each full
flag name, what the flag takes: the word of a FlagKind, or the only values that the parser accepts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Final

__all__ = ["TABLES", "Flag", "FlagKind"]


class FlagKind(StrEnum):
    SWITCH = "switch"
    """--x turns it on, --no-x off."""
    ON_ONLY = "on-only"
    """--x turns it on; leaving it out turns it off."""
    VALUE = "value"
    """--x=VALUE."""


@dataclass(frozen=True)
class Flag:
    kind: FlagKind
    choices: tuple[str, ...] = ()
    """The only values it takes; empty when the parser itself does not limit them."""


def _flag(takes: str | list[str]) -> Flag:
    if isinstance(takes, str):
        return Flag(FlagKind(takes))
    return Flag(FlagKind.VALUE, tuple(takes))


def _tables() -> Iterator[tuple[str, Mapping[str, Flag]]]:
    """Read the files of this package, oldest version first."""
    texts = {
        file.name.removesuffix(".json"): file.read_text(encoding="utf-8")
        for file in files(__package__).iterdir()
        if file.name.endswith(".json")
    }
    for version in sorted(texts, key=lambda each: [int(part) for part in each.split(".")]):
        yield version, {flag: _flag(takes) for flag, takes in json.loads(texts[version]).items()}


TABLES: Final[Mapping[str, Mapping[str, Flag]]] = dict(_tables())
"""vLLM version -> full flag name -> what the flag takes; oldest version first. Read once, when the
module is imported, from files that are part of the program."""
