"""Changes a command line as a user would who follows the operator's messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from migration.cases import Case
from translation import BY_FLAG, SPECULATION, Inexpressible, refusals, spec_of

MOST_CHANGES: Final = 40
_ABOUT: Final = re.compile(r"(--[a-z0-9-]+|[A-Z][A-Z0-9_]+): (.*)", re.DOTALL)
_OTHER_NAME: Final = re.compile(r"did you mean (--[a-z0-9-]+)\?|write (--[a-z0-9-]+) instead")
_MEMBER: Final = re.compile(r".*?(\{.*\}) is gone from vLLM: write (\{.*\}) instead")
_FIELD: Final = re.compile(r"set ([a-zA-Z.]+) instead")
_FLAG_OF: Final = {
    field.name: flag
    for flag, field in BY_FLAG.items()
    if flag not in (SPECULATION, "--enable-lora")
}
"""Mapping from a field to the flag that takes the same value. The two flags that are left out need
more changes than a new name."""


@dataclass(frozen=True)
class Change:
    """One change that a message requires of the user."""

    message: str
    before: str
    after: str


def follow(case: Case) -> tuple[Case, list[Change]]:
    """Return the case after every change that the messages require, and these changes.

    The changes end when no message requires a change that can be made mechanically.
    """
    changes: list[Change] = []
    for _ in range(MOST_CHANGES):
        try:
            complaints = refusals(spec_of(case.model, case.flags, case.environment))
        except Inexpressible:
            break
        step = next(_steps(case, complaints), None)
        if step is None:
            break
        case, change = step
        changes.append(change)
    return case, changes


def _steps(case: Case, complaints: list[str]) -> Iterator[tuple[Case, Change]]:
    for complaint in complaints:
        about = _ABOUT.fullmatch(complaint)
        if about is None:
            continue
        name, message = about.groups()
        if name in case.environment and "remove it" in message:
            kept = {key: value for key, value in case.environment.items() if key != name}
            yield replace(case, environment=kept), Change(message, name, "")
        elif name in case.flags and (member := _MEMBER.fullmatch(message)) is not None:
            yield _with_member(case, name, member[1], member[2]), Change(message, name, name)
        elif name in case.flags:
            other = _new_name(message)
            if other is not None or "remove it" in message:
                yield _renamed(case, name, other), Change(message, name, other or "")


def _with_member(case: Case, flag: str, old: str, new: str) -> Case:
    """Return the case with the JSON members `new` in place of `old` in the value of a flag."""
    gone = json.loads(old)
    said = json.loads(str(case.flags[flag]))
    kept = {key: value for key, value in said.items() if key not in gone}
    return replace(case, flags={**case.flags, flag: json.dumps(kept | json.loads(new))})


def _new_name(message: str) -> str | None:
    """Return the flag that a message suggests. The message names the flag or its field.

    None if the message suggests no flag.
    """
    other = _OTHER_NAME.search(message)
    if other is not None:
        return other[1] or other[2]
    field = _FIELD.search(message)
    return None if field is None else _FLAG_OF.get(field[1])


def _renamed(case: Case, name: str, other: str | None) -> Case:
    flags = {(other or "") if flag == name else flag: value for flag, value in case.flags.items()}
    flags.pop("", None)
    return replace(case, flags=flags)
