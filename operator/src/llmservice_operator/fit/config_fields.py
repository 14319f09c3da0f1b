"""Reads numbers from a model's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmservice_operator.errors import OperatorError


class UnknownShape(OperatorError):
    """The memory of the model cannot be computed from its config.json."""


def number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of these fields that is a positive number.

    Raises UnknownShape when there is none.
    """
    found = first_positive(config, *names)
    if found is None:
        raise UnknownShape(f"config.json has no {names[0]}")
    return found


def first_positive(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first of these fields that is a positive number; None when there is none."""
    values = map(config.get, names)
    return next((each for each in values if isinstance(each, int) and each > 0), None)
