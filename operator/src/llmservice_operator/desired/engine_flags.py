"""Writes the flags of an engine of one vLLM version, and explains why a flag is refused.

vLLM's parser accepts abbreviations, underscores and nested flags, so a user could evade a list of
refused flags. Only the full name of a flag in the version's table is accepted here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

from llmservice_operator.api.extra_args import FLAGS_WITH_A_FIELD, IS_REFUSED, is_refused
from llmservice_operator.api.flags import listed
from llmservice_operator.desired.checked_values import PARSER_FLAGS, refusal_of
from llmservice_operator.desired.flag_tables import TABLES, Flag, FlagKind
from llmservice_operator.desired.gone_flags import GONE
from llmservice_operator.errors import InvalidSpec

_CLOSE = 0.85
"""Similarity, between 0 and 1, from which a flag is considered a misspelling of another flag. The
value is an estimate that allows one or two wrong letters. If the flags are less similar, the user
meant something else, and a suggestion would be wrong."""

_NEGATIVE_FORMS = (
    ("--no-", "--"),
    ("--disable-", "--enable-"),
    ("--enable-", "--disable-"),
)
"""Prefixes of flags that turn a switch off, each with the prefix of the switch itself."""


@dataclass(frozen=True)
class EngineFlags:
    """The flags of one vLLM version."""

    version: str
    table: Mapping[str, Flag]
    has_own_image: bool = False
    """True if the spec names an image of its own, which may contain further parsers."""

    @classmethod
    def of(cls, version: str, *, has_own_image: bool = False) -> Self:
        """Return the flags of a version. Raises InvalidSpec for a version without a table."""
        if version not in TABLES:
            raise InvalidSpec(
                f"vLLM {version} is not known to this operator: use an image of vLLM "
                f"{listed(TABLES)} and set its version",
                "spec.engine.version",
            )
        return cls(version, TABLES[version], has_own_image)

    def write_extra(self, flag: str, value: str, field: str) -> list[str]:
        """Return the arguments for `flag=value` of extraArgs.

        Raises InvalidSpec for a flag that is not accepted here or that the version lacks, and for a
        value that is refused.
        """
        if is_refused(flag):
            raise InvalidSpec(f"{flag} {IS_REFUSED}", field)
        if flag not in self.table and not _versions_with(flag):
            raise InvalidSpec(self._why_unknown(flag), field)
        if refusal := refusal_of(flag, value, has_own_image=self.has_own_image):
            raise InvalidSpec(f"{flag}: {refusal}", field)
        kind = self._flag(flag, field).kind
        if kind is FlagKind.VALUE:
            return self.write(flag, value, field)
        if value not in ("true", "false"):
            raise InvalidSpec(f"{flag} is a switch: write {flag}=true or {flag}=false", field)
        return self.write(flag, value == "true", field)

    def write(self, flag: str, value: str | int | bool | list[str], field: str) -> list[str]:
        """Return the arguments that set `flag`. No argument is needed if `value` is False and the
        flag has no form that turns it off.

        Raises InvalidSpec, which names `field`, when the version lacks the flag or the value.
        """
        entry = self._flag(flag, field)
        if isinstance(value, bool):
            off = [f"--no-{flag.removeprefix('--')}"] if entry.kind is FlagKind.SWITCH else []
            return [flag] if value else off
        if isinstance(value, list):
            # Each of several values has to be a separate argument.
            return [flag, *value] if len(value) > 1 else [f"{flag}={value[0]}"]
        takes_any = not entry.choices or (self.has_own_image and flag in PARSER_FLAGS)
        if not takes_any and str(value) not in entry.choices:
            raise InvalidSpec(
                f"{value} is not a value of {flag} in vLLM {self.version}: "
                f"choose from {', '.join(entry.choices)}",
                field,
            )
        return [f"{flag}={value}"]

    def _flag(self, flag: str, field: str) -> Flag:
        if flag not in self.table:
            raise InvalidSpec(
                f"needs {flag}, which vLLM {self.version} does not have: remove it, or run an "
                f"engine.version that has it: {listed(_versions_with(flag))}",
                field,
            )
        return self.table[flag]

    def _why_unknown(self, flag: str) -> str:
        """Return a message that says what to change about a flag that no supported version has."""
        if flag in GONE:
            return f"{flag} is gone from vLLM: {GONE[flag]}"
        for negative, positive in _NEGATIVE_FORMS:
            switch = flag.replace(negative, positive, 1)
            entry = None if switch == flag or is_refused(switch) else self.table.get(switch)
            if entry is not None and entry.kind is not FlagKind.VALUE:
                its_field = FLAGS_WITH_A_FIELD.get(switch)
                off = f"set {its_field}" if its_field else f"write {switch}=false"
                return f"{flag} turns off {switch}: {off} instead"
        return f"{flag} is not a flag of vLLM: {self._nearest(flag)}"

    def _nearest(self, flag: str) -> str:
        known = [each for each in self.table if not is_refused(each)]
        near = get_close_matches(flag, known, n=1, cutoff=_CLOSE)
        if not near:
            return "remove it; docs/engine-flags.md lists them"
        field = FLAGS_WITH_A_FIELD.get(near[0])
        return f"did you mean {near[0]}?" + (f" Set {field} instead" if field else "")


def accepted_flags(table: Mapping[str, Flag]) -> list[str]:
    """Return the flags of a table that spec.engine.extraArgs may contain."""
    return [flag for flag in table if not is_refused(flag) and flag not in FLAGS_WITH_A_FIELD]


def _versions_with(flag: str) -> list[str]:
    return [version for version, table in TABLES.items() if flag in table]
