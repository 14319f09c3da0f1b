"""What the flag tables are made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class FlagKind(StrEnum):
    SWITCH = "switch"
    """--x turns it on, --no-x off."""
    ON_ONLY = "on-only"
    """--x turns it on; off is to leave it out."""
    VALUE = "value"
    """--x=VALUE."""


@dataclass(frozen=True)
class Flag:
    kind: FlagKind
    choices: tuple[str, ...] = ()
    """The only values it takes; empty when the parser itself does not limit them."""


SWITCH: Final = Flag(FlagKind.SWITCH)
ON_ONLY: Final = Flag(FlagKind.ON_ONLY)
VALUE: Final = Flag(FlagKind.VALUE)


def choice(*values: str) -> Flag:
    return Flag(FlagKind.VALUE, values)
