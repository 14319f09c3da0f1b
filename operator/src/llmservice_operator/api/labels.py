"""Labels, label selectors and annotations: their syntax, and the keys that the operator reserves.

The syntax is that of Kubernetes, so labels that the API server accepts on an LLMService are valid
on its pods too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule, ValueRule, matches
from llmservice_operator.api.references import SUBDOMAIN_PATTERN

_NAME_PATTERN: Final = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
KEY_PATTERN: Final = f"({SUBDOMAIN_PATTERN}/)?{_NAME_PATTERN}"
KEY_FORM: Final = re.compile(KEY_PATTERN)
VALUE_FORM: Final = re.compile(f"({_NAME_PATTERN})?")
_KEY_MESSAGE: Final = "such as team or example.com/team"

KEY_LENGTH: Final = 317
"""Maximum length of a key, in characters: a prefix of 253, a slash and a name of 63."""

LabelKey = Annotated[
    str,
    Field(min_length=1, max_length=KEY_LENGTH),
    matches(KEY_PATTERN, f"must be a label key, {_KEY_MESSAGE}"),
]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    matches(
        f"({_NAME_PATTERN})?",
        "must be a label value: at most 63 letters, digits and . _ -, starting and ending with "
        "a letter or digit",
    ),
]

KEYS_ARE_VALID = ValueRule(
    cel=f"self.all(key, size(key) <= {KEY_LENGTH} && key.matches('^{KEY_PATTERN}$'))",
    message=f"has an invalid key: write one {_KEY_MESSAGE}",
    holds=lambda keys: all(len(key) <= KEY_LENGTH and KEY_FORM.fullmatch(key) for key in keys),
)

_RESERVED_PREFIXES: Final = ("llmservice.dev/", "pod-template-hash")
_RESERVED_LABELS: Final = tuple(
    f"app.kubernetes.io/{name}" for name in ("name", "instance", "managed-by")
)
_SECURITY_PREFIXES: Final = (
    "container.apparmor.security.beta.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
)
"""Prefixes of former annotations that weaken the security profile of a container."""


def _none_starts_with(prefixes: tuple[str, ...], message: str) -> ValueRule:
    return ValueRule(
        cel=f"self.all(key, !{list(prefixes)}.exists(prefix, key.startsWith(prefix)))",
        message=message,
        holds=lambda keys: not any(key.startswith(prefixes) for key in keys),
    )


_Key = Annotated[str, Field(max_length=KEY_LENGTH)]

Labels = Annotated[
    Mapping[_Key, LabelValue],
    Field(max_length=32),
    KEYS_ARE_VALID,
    _none_starts_with(
        (*_RESERVED_PREFIXES, *_RESERVED_LABELS),
        "has a label that the operator or Kubernetes sets: remove llmservice.dev/*, "
        "pod-template-hash and app.kubernetes.io/name, instance and managed-by",
    ),
]
"""Labels that a user may add to the pods or to the other objects."""

Annotations = Annotated[
    Mapping[_Key, Annotated[str, Field(max_length=4096)]],
    Field(max_length=32),
    KEYS_ARE_VALID,
    _none_starts_with(
        (*_RESERVED_PREFIXES, *_SECURITY_PREFIXES),
        "has an annotation that the operator sets or that weakens the container's security "
        "profile: remove it",
    ),
]
"""Annotations that a user may add to the pods or to the other objects."""


SOURCE_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""Annotation that service.loadBalancerSourceRanges replaces. The API server still reads it and
refuses a Service object whose annotation is invalid."""

SOURCE_RANGES_HAVE_A_FIELD = ValueRule(
    cel=f"!('{SOURCE_RANGES}' in self)",
    message=f"{SOURCE_RANGES} has a field of its own: set service.loadBalancerSourceRanges instead",
    holds=lambda annotations: SOURCE_RANGES not in annotations,
)

_CONTROLLER_PREFIXES: Final = (
    *("deployment.kubernetes.io/", "autoscaling.alpha.kubernetes.io/", "kubectl.kubernetes.io/"),
    *("pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/"),
)


class ObjectMetadata(Fields):
    """Labels and annotations of all objects of a service, except its pods."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the objects, such as those that a policy of the cluster requires or that a cost
    report groups by. The operator's own labels cannot be replaced."""
    annotations: Annotated[
        Annotations,
        _none_starts_with(
            _CONTROLLER_PREFIXES,
            "has an annotation that Kubernetes or kubectl sets: remove deployment.kubernetes.io/*, "
            "kubectl.kubernetes.io/* and those of volumes and autoscalers",
        ),
        SOURCE_RANGES_HAVE_A_FIELD,
    ] = Field(default_factory=dict)
    """Annotations of the objects. On the Service object, service.annotations take precedence."""


class LabelRequirement(Fields):
    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """Operator that compares the label's value with `values`."""
    values: Annotated[
        tuple[LabelValue, ...],
        Field(max_length=32, json_schema_extra=ATOMIC),
    ] = ()
    """Values for In and NotIn; must be empty for the other operators."""

    rules: ClassVar = (
        Rule(
            "values",
            cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
            message="is required by the operators In and NotIn and refused by the others",
            holds=lambda self: (self.operator in ("In", "NotIn")) == bool(self.values),
        ),
    )


class LabelSelector(Fields):
    match_labels: Annotated[Mapping[_Key, LabelValue], Field(max_length=16), KEYS_ARE_VALID] = (
        Field(default_factory=dict)
    )
    """Labels that an object must have, each with the given value."""
    match_expressions: Annotated[
        tuple[LabelRequirement, ...],
        Field(max_length=8, json_schema_extra=ATOMIC),
    ] = ()
    """Further label requirements, which must all be met."""

    @property
    def keys(self) -> set[str]:
        """Keys of the labels that the selector reads."""
        return {*self.match_labels, *(each.key for each in self.match_expressions)}


LabelKeys = Annotated[
    tuple[LabelKey, ...],
    Field(max_length=8, json_schema_extra=ATOMIC),
]
