"""Declares, at each field of the spec, the engine flag that the field sets.

`max_model_len: Annotated[int, EngineFlag("--max-model-len")] | None = None` is all that a plain
field needs. The command line, the rules of spec.engine.extraArgs and docs/engine-flags.md follow
from the declarations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from llmservice_operator.api.fields import Fields

_PLAIN_TYPES: Final = (bool, int, str)


@dataclass(frozen=True)
class EngineFlag:
    """The flag that the annotated field sets."""

    name: str
    """Full name, with its dashes."""
    also: tuple[str, ...] = ()
    """Other flags of the engine that set the same property or a part of it. extraArgs refuses these
    flags."""
    words: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The engine's word for some values of the field. A value without an entry is written in lower
    case."""
    is_computed: bool = False
    """Whether desired/engine_args.py computes the value from more than this field."""
    accepted_in_extra_args: bool = False
    """Whether extraArgs also accepts the flag. This is the case for a flag that extraArgs accepted
    before the field existed, because stored services may contain the flag there."""

    @property
    def refused_in_extra_args(self) -> tuple[str, ...]:
        """Flags of this field that extraArgs refuses because the field exists."""
        return self.also if self.accepted_in_extra_args else (self.name, *self.also)


@dataclass(frozen=True)
class FlagField:
    """A field of the spec that sets an engine flag."""

    flag: EngineFlag
    path: tuple[str, ...]
    """Attributes that lead from the spec to the field, such as ("engine", "dtype")."""
    name: str
    """Path of the field in YAML, without the leading `spec.`."""
    default: Any
    """Default of the schema. A field with this value counts as unset."""
    has_words: bool
    """Whether the value of the field is one of several fixed CamelCase words."""

    def is_set(self, spec: Fields) -> bool:
        """Return whether the spec sets this field to a value other than the default of the
        schema.
        """
        return self._stored(spec) is not None

    def value(self, spec: Fields) -> str | int | bool | None:
        """Return the value that the engine gets from this field alone; None when the field is not
        set.
        """
        value: str | int | bool | None = self._stored(spec)
        if self.has_words and value is not None:
            return self.flag.words.get(str(value), str(value).lower())
        return value

    def _stored(self, spec: Fields) -> Any:
        place: Any = spec
        for attribute in self.path:
            place = getattr(place, attribute)
            if place is None:
                return None
        return None if place == self.default else place


def declared_flags(**parts: type[Fields]) -> tuple[FlagField, ...]:
    """Return each field that sets a flag in these parts of the spec, in the order of declaration.

    Raises TypeError if two fields declare the same flag. Also raises it if the type of a field
    cannot be written on a command line and the flag is not declared with is_computed=True.
    """
    found: dict[str, FlagField] = {}
    for part, model in parts.items():
        for each in _flags_of(model, (part,), part):
            for name in (each.flag.name, *each.flag.also):
                if name in found:
                    raise TypeError(
                        f"spec.{each.name} and spec.{found[name].name} both declare {name}: "
                        "only one field may set a flag"
                    )
                found[name] = each
    return tuple(dict.fromkeys(found.values()))


def _flags_of(model: type[Fields], path: tuple[str, ...], name: str) -> Iterator[FlagField]:
    for attribute, info in model.model_fields.items():
        its_path, its_name = (*path, attribute), f"{name}.{info.alias}"
        plain, notes = unwrapped(info)
        for flag in notes:
            if isinstance(flag, EngineFlag):
                has_words = get_origin(plain) is Literal
                if not (flag.is_computed or has_words or plain in _PLAIN_TYPES):
                    raise TypeError(
                        f"spec.{its_name} sets {flag.name}, but a {plain} cannot be written on a "
                        "command line: declare the flag with is_computed=True and compute its "
                        "value in desired/engine_args.py"
                    )
                yield FlagField(flag, its_path, its_name, info.default, has_words)
        if isinstance(plain, type) and issubclass(plain, Fields):
            yield from _flags_of(plain, its_path, its_name)


def unwrapped(info: FieldInfo) -> tuple[Any, list[Any]]:
    """Return a field's type without None, and all its annotations."""
    plain, notes = info.annotation, list(info.metadata)
    while True:
        if get_origin(plain) is Annotated:
            plain, *more = get_args(plain)
            notes += more
        elif NoneType in get_args(plain):
            (plain,) = (each for each in get_args(plain) if each is not NoneType)
        else:
            return plain, notes


def listed(words: Iterable[str]) -> str:
    """Return the words as alternatives, such as "a, b or c"."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
