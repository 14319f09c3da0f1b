"""The flags that each vLLM version has, as its own parser told.

A table is never removed while a service may be pinned to its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmservice_operator.desired.flag_tables import v0_30_0, v0_31_0, v0_32_0
from llmservice_operator.desired.flag_tables.flag import Flag, FlagKind

__all__ = ["TABLES", "Flag", "FlagKind"]

TABLES: Final[Mapping[str, Mapping[str, Flag]]] = {
    "0.30.0": v0_30_0.FLAGS,
    "0.31.0": v0_31_0.FLAGS,
    "0.32.0": v0_32_0.FLAGS,
}
"""vLLM version -> full flag name -> what the flag takes; oldest version first."""
