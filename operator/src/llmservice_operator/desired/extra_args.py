"""Reads the flags in spec.engine.extraArgs, and reports those that have a field now.

A flag that gets a field keeps working in extraArgs, because a stored service may contain it there.
The flag keeps its place on the command line, so that no pod is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llmservice_operator.api.extra_args import FLAG_FIELDS
from llmservice_operator.api.flags import FlagField
from llmservice_operator.api.spec import LLMServiceSpec
from llmservice_operator.desired.gone_flags import GONE_VARIABLES

DEPRECATED_ARGUMENT: Final = "DeprecatedArgument"
"""Reason of the Event about an argument whose flag has a field now, and about a variable that vLLM
no longer reads."""


@dataclass(frozen=True)
class ExtraFlag:
    """One item of extraArgs."""

    flag: str
    value: str
    place: str
    """Path in the spec, such as spec.engine.extraArgs[0]."""
    field: FlagField | None
    """Field that sets the same flag; None if there is none."""

    def is_left_to_the_field(self, spec: LLMServiceSpec) -> bool:
        """Return whether the field is also set. The field is then used in place of the argument."""
        return self.field is not None and self.field.is_set(spec)


def read_extra_args(spec: LLMServiceSpec) -> list[ExtraFlag]:
    """Return the items of extraArgs, each with the field that sets the same flag."""
    by_flag = {field.flag.name: field for field in FLAG_FIELDS}
    found = []
    for index, arg in enumerate(spec.engine.extra_args):
        flag, _, value = arg.partition("=")
        place = f"spec.engine.extraArgs[{index}]"
        found.append(ExtraFlag(flag, value, place, by_flag.get(flag)))
    return found


def build_notices(spec: LLMServiceSpec) -> tuple[str, ...]:
    """Return a notice about each item whose flag has a field, and about each variable that vLLM no
    longer reads.

    Each notice says what to change.
    """
    return (*_flag_notices(spec), *_variable_notices(spec))


def _flag_notices(spec: LLMServiceSpec) -> Iterator[str]:
    yield from (
        f"{each.place}: {each.flag} has a field, which is set: remove the argument."
        if each.is_left_to_the_field(spec)
        else f"{each.place}: {each.flag} has a field now: set spec.{each.field.name} instead. "
        "The argument still works; the change may replace the pods."
        for each in read_extra_args(spec)
        if each.field is not None
    )


def _variable_notices(spec: LLMServiceSpec) -> Iterator[str]:
    for index, variable in enumerate(spec.engine.env):
        if variable.name in GONE_VARIABLES:
            yield (
                f"spec.engine.env[{index}]: {variable.name} has no effect, because vLLM no longer "
                f"reads it: {GONE_VARIABLES[variable.name]}."
            )
