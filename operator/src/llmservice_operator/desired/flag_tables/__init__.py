"""The flags of each vLLM version, as its parser lists them. There is one data file per version.

`make flag-tables V=...` writes the file. A version is supported if its file is in this folder. A
file is never removed while a service may be pinned to its version. For each full flag name, the
file contains the value of a FlagKind, or the list of the only values that the parser accepts.
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
    """--x turns the flag on, and --no-x turns it off."""
    ON_ONLY = "on-only"
    """--x turns the flag on. Without --x, it is off."""
    VALUE = "value"
    """--x=VALUE sets the flag."""


@dataclass(frozen=True)
class Flag:
    kind: FlagKind
    choices: tuple[str, ...] = ()
    """The only values that the flag takes; empty if the parser does not limit them."""


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
"""For each vLLM version, the oldest first, a mapping from the full name of a flag to the flag. The
files, which are part of the program, are read once, when the module is imported."""
