"""The CEL rules of a schema, run as the API server runs them, with its functions."""

import ipaddress
import json
from functools import cache
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from llmservice_operator.api.fields import quantity_value


def _is_quantity(text: Any) -> celtypes.BoolType:
    return celtypes.BoolType(quantity_value(str(text)) is not None)


def _quantity(text: Any) -> celtypes.DoubleType:
    return celtypes.DoubleType(float(quantity_value(str(text)) or 0))


def _compare(left: Any, right: Any) -> celtypes.IntType:
    return celtypes.IntType((left > right) - (left < right))


def _is_cidr(text: Any) -> celtypes.BoolType:
    try:
        ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        return celtypes.BoolType(False)
    return celtypes.BoolType("/" in str(text))


def _contains_cidr(whole: Any, part: Any) -> celtypes.BoolType:
    one, other = (ipaddress.ip_network(str(each), strict=False) for each in (whole, part))
    same = one.version == other.version
    return celtypes.BoolType(same and other.subnet_of(one))  # type: ignore[arg-type]


def _prefix_length(cidr: Any) -> celtypes.IntType:
    return celtypes.IntType(ipaddress.ip_network(str(cidr), strict=False).prefixlen)


def _replace(text: Any, old: Any, new: Any) -> celtypes.StringType:
    return celtypes.StringType(str(text).replace(str(old), str(new)))


def _split(text: Any, separator: Any) -> celtypes.ListType:
    return celtypes.ListType(map(celtypes.StringType, str(text).split(str(separator))))


_FUNCTIONS: dict[str, Any] = {
    "isCIDR": _is_cidr,
    "cidr": lambda text: text,
    "containsCIDR": _contains_cidr,
    "prefixLength": _prefix_length,
    "replace": _replace,
    "split": _split,
    "isQuantity": _is_quantity,
    "quantity": _quantity,
    "compareTo": _compare,
}
_ENVIRONMENT = celpy.Environment()


def compiled(rule: str) -> Any:
    """Compile a rule; raises what the interpreter raises where it is none."""
    return _ENVIRONMENT.compile(rule)


def holds(rule: str, value: Any) -> bool:
    """Say whether a rule holds for a value."""
    # The interpreter is slow, and random specs have most of their parts in common.
    return _holds(rule, json.dumps(value))


@cache
def _holds(rule: str, value: str) -> bool:
    try:
        return bool(_program(rule).evaluate({"self": json_to_cel(_spelled(json.loads(value)))}))
    except CELEvalError:
        # The API server refuses a value whose rule cannot be evaluated.
        return False


@cache
def _program(rule: str) -> Any:
    return _ENVIRONMENT.program(compiled(rule), functions=_FUNCTIONS)


def _spelled(value: Any) -> Any:
    """Spell the names of fields as the API server does where they are no CEL identifiers.

    The interpreter takes the rules as they are once the values are spelled alike.
    """
    if isinstance(value, dict):
        return {key.replace("-", "__dash__"): _spelled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_spelled(each) for each in value]
    return value


def broken_rules(schema: dict[str, Any], value: Any, path: str = "") -> set[str]:
    """Return the messages of all rules of the CRD that the value breaks."""
    broken = {
        rule["message"]
        for rule in schema.get("x-kubernetes-validations", [])
        if not holds(rule["rule"], value)
    }
    if isinstance(value, dict):
        for key, each in value.items():
            child = schema.get("properties", {}).get(key) or schema.get("additionalProperties", {})
            broken |= broken_rules(child, each)
    if isinstance(value, list):
        for each in value:
            broken |= broken_rules(schema["items"], each)
    return broken


def defaulted(schema: dict[str, Any], value: Any) -> Any:
    """Fill in the defaults as the API server does before it runs the rules."""
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, field in schema.get("properties", {}).items():
        if name not in filled and "default" in field:
            filled[name] = field["default"]
        if name in filled:
            filled[name] = defaulted(field, filled[name])
    return filled


def all_rules(schema: dict[str, Any]) -> list[str]:
    """Return every rule of a schema and of what is in it."""
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", [])]
    children = [*schema.get("properties", {}).values()]
    children += [schema["items"]] if "items" in schema else []
    return rules + [rule for child in children for rule in all_rules(child)]
