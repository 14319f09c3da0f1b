"""What every part of the resource is made of: the model base class, its rules and quantities.

A rule is written once, in CEL for the API server and in Python for the operator and `render`, with
one message; a test holds the two forms against each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel, to_snake
from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Rule:
    """Something that must hold between or inside the fields of one object."""

    field: str
    """The field at fault, as written in YAML."""
    cel: str
    """The rule for the API server; `self` is the object."""
    message: str
    """What to write instead; starts in lower case because the field's path stands before it."""
    holds: Callable[[Any], bool]
    """The same rule for Python; takes the parsed object."""


def _publish_rules(schema: dict[str, Any], model: type[Fields]) -> None:
    if model.rules:
        schema["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": rule.message, "fieldPath": f".{rule.field}"}
            for rule in model.rules
        ]


class Fields(BaseModel):
    """Base of every object in the resource: frozen, camelCase outside, snake_case inside.

    Unknown fields are ignored, because the API server already refused them and a newer CRD may
    have fields that this operator does not know.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        json_schema_extra=_publish_rules,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _follow_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                context = {"message": rule.message, "field": rule.field}
                raise PydanticCustomError("rule", "{message}", context)
        return self


_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_POWERS = {suffix: power for power, suffix in enumerate("kMGTPE", start=1)}


def quantity_value(text: str | int) -> Decimal | None:
    """Return the amount that a Kubernetes quantity such as 500m or 2Gi stands for.

    None when it is no quantity, or one in exponent notation, which this API does not take.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix == "m":
        return number / 1000
    if suffix.endswith("i"):
        return number * Decimal(1024) ** _POWERS[{"K": "k"}.get(suffix[0], suffix[0])]
    return number * Decimal(1000) ** _POWERS.get(suffix, 0)


def _quantity_text(value: JsonValue) -> JsonValue:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
        }
    ),
]
"""A Kubernetes quantity; the rules of the object that holds it check its form."""


def matches(field: str, pattern: str, message: str) -> Rule:
    """Return the rule that a string or quantity field, when set, is of the form `pattern`.

    The pattern must mean the same to Python and to RE2 and hold no backslash or quote.
    """
    form, attribute = re.compile(pattern), to_snake(field)

    def holds(fields: Fields) -> bool:
        value = getattr(fields, attribute)
        return value is None or form.fullmatch(value) is not None

    cel = f"!has(self.{field}) || self.{field}.matches('^({pattern})$')"
    return Rule(field=field, cel=cel, message=message, holds=holds)
