"""Building blocks of the resource: the model base class, its rules and quantities.

Each rule has two forms with one message: CEL for the API server, Python for the operator and
`render`. A test compares the two forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from llmservice_operator.errors import InvalidSettings

VALIDATIONS = "x-kubernetes-validations"
"""Key of the CEL rules in a schema."""

ATOMIC: Final[dict[str, JsonValue]] = {"x-kubernetes-list-type": "atomic"}
"""Schema of a list that has one field manager as owner. A client that changes an item sends the
whole list."""


def keyed_by(*fields: str) -> dict[str, JsonValue]:
    """Return the schema of a list whose items are identified by `fields`. Each item may have a
    different owner.
    """
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [*fields]}


@dataclass(frozen=True)
class ValueRule:
    """Rule for a single value, written as `Annotated[str, ValueRule(...)]`."""

    cel: str
    """The rule for the API server; `self` is the value."""
    message: str
    """Problem and correction, starting in lower case, because the path of the field precedes it."""
    holds: Callable[[Any], bool]
    """The same rule for Python; takes the value."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._follow, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        published = handler(schema)
        rule = {"rule": self.cel, "message": self.message}
        earlier = published.get(VALIDATIONS, [])
        return {**published, VALIDATIONS: [*earlier, rule]}

    def _follow(self, value: Any) -> Any:
        if not self.holds(value):
            raise PydanticCustomError("rule", "{message}", {"message": self.message})
        return value


def matches(pattern: str, message: str) -> ValueRule:
    """Return the rule that the whole text matches `pattern`.

    The pattern must have the same meaning in Python and in RE2, and contain no backslash or quote.
    """
    form = re.compile(pattern)
    return ValueRule(
        cel=f"self.matches('^({pattern})$')",
        message=message,
        holds=lambda text: form.fullmatch(text) is not None,
    )


def at_least(least: str, message: str) -> ValueRule:
    """Return the rule that a Quantity is not below `least`, such as 1Gi."""
    bound = quantity_value(least) or 0
    return ValueRule(
        cel="!isQuantity(string(self)) || "
        f"quantity(string(self)).compareTo(quantity('{least}')) >= 0",
        message=message,
        holds=lambda amount: (quantity_value(amount) or 0) >= bound,
    )


@dataclass(frozen=True)
class Rule:
    """Rule between the fields of one object."""

    field: str
    """The field at fault, as written in YAML."""
    cel: str
    """The rule for the API server; `self` is the object."""
    message: str
    """Problem and correction, starting in lower case, because the path of the field precedes it."""
    holds: Callable[[Any], bool]
    """The same rule for Python; takes the parsed object."""


def published_rules(model: type[Fields]) -> list[dict[str, str]]:
    """Return the rules of the model in the form of its schema."""
    return [
        {"rule": rule.cel, "message": rule.message, "fieldPath": f".{rule.field}"}
        for rule in model.rules
    ]


def _publish_rules(schema: dict[str, Any], model: type[Fields]) -> None:
    if model.rules:
        schema[VALIDATIONS] = published_rules(model)


class Fields(BaseModel):
    """Base class of every object in the resource: frozen, camelCase in YAML, snake_case in Python.

    Unknown fields are ignored. The API server has already refused or dropped the fields that its
    CRD does not have, and a newer CRD may have fields that this operator does not know.
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
        broken = [rule for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValidationError.from_exception_data(
                type(self).__name__, [_broken(rule) for rule in broken]
            )
        return self


def _broken(rule: Rule) -> InitErrorDetails:
    context = {"message": rule.message, "field": rule.field}
    return InitErrorDetails(type=PydanticCustomError("rule", "{message}", context), input=None)


_PLAIN_QUANTITY = "([0-9]{1,15}([.][0-9]{1,3})?(k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?|[0-9]{1,15}m)"
"""Pattern of the quantities whose amount Kubernetes stores unchanged. Kubernetes rounds amounts
finer than a thousandth, so the stored object would always differ from the applied one."""
_LARGEST_QUANTITY = "1Pi"
_QUANTITY = re.compile("([0-9]+(?:[.][0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_POWERS = {suffix: power for power, suffix in enumerate("kMGTPE", start=1)}

GIB: Final = 1024**3
"""Number of bytes in a gibibyte, the unit Gi of a quantity."""


def quantity_value(text: str | int) -> Decimal | None:
    """Return the amount of a Kubernetes quantity such as 500m or 2Gi.

    Return None for a text that is not a quantity. Exponent notation, such as 1e3, is not accepted
    as a quantity.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix == "m":
        return number / 1000
    if suffix.endswith("i"):
        return number * Decimal(1024) ** _POWERS[suffix[0].replace("K", "k")]
    return number * Decimal(1000) ** _POWERS.get(suffix, 0)


def _is_at_most(text: str, largest: str) -> bool:
    value, most = quantity_value(text), quantity_value(largest)
    return value is None or most is None or value <= most


def _quantity_text(value: JsonValue) -> JsonValue:
    """Return a whole number as text, and any other value unchanged.

    Raises PydanticCustomError for a number with a fraction. The API server also refuses such a
    number, because a structural schema can allow integers and strings in one field, but no other
    numbers.
    """
    if isinstance(value, float) and not value.is_integer():
        message = (
            f'must be a string when it has a fraction: write "{value}" in quotes, or 500m for 0.5'
        )
        raise PydanticCustomError("rule", "{message}", {"message": message})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value))
    return value


def _int_or_string(max_length: int) -> WithJsonSchema:
    """Return the schema of a string that may also be written as an integer."""
    return WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": max_length,
        }
    )


Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    _int_or_string(max_length=32),
    ValueRule(
        cel=f"string(self).matches('^{_PLAIN_QUANTITY}$')",
        message="must be a quantity such as 4, 500m or 32Gi, with at most three decimals",
        holds=lambda text: re.fullmatch(_PLAIN_QUANTITY, text) is not None,
    ),
    ValueRule(
        cel="!isQuantity(string(self)) || "
        f"quantity(string(self)).compareTo(quantity('{_LARGEST_QUANTITY}')) <= 0",
        message=f"must be at most {_LARGEST_QUANTITY}: no node has more",
        holds=lambda text: _is_at_most(text, _LARGEST_QUANTITY),
    ),
]

PORTION_FORM = "(0|[1-9][0-9]{0,3})|(0|[1-9][0-9]?|100)%"

Portion = Annotated[
    str,
    BeforeValidator(_quantity_text),
    _int_or_string(max_length=4),
    ValueRule(
        cel=f"string(self).matches('^({PORTION_FORM})$')",
        message="must be a number of replicas such as 1, or a percentage such as 25%",
        holds=lambda text: re.fullmatch(PORTION_FORM, text) is not None,
    ),
]
"""A number of replicas up to 9999, or a percentage of them."""


def wrong_content(variable: str, error: ValidationError) -> InvalidSettings:
    """Return the error about the first wrong field in the content of an environment variable."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return InvalidSettings(": ".join(filter(None, (variable, field, first["msg"]))))


def timestamp(moment: datetime) -> str:
    """Return a moment, with any time zone, as Kubernetes writes it: in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_int_or_string(portion: str) -> int | str:
    """Return a Portion in the form that the API server accepts."""
    return portion if portion.endswith("%") else int(portion)
