"""spec.route: the Gateways that lead to the API."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule, matches
from llmservice_operator.api.references import NAMESPACE_FORM, SUBDOMAIN_PATTERN, ObjectName


def _value(of: str, field: str, default: str) -> str:
    """Return the CEL form of an optional field's value."""
    return f"(has({of}.{field}) ? {of}.{field} : '{default}')"


_SAME: Final = " && ".join(
    (
        "a.name == b.name",
        f"{_value('a', 'kind', 'Gateway')} == {_value('b', 'kind', 'Gateway')}",
        f"{_value('a', '__namespace__', '')} == {_value('b', '__namespace__', '')}",
    )
)
_SECTION: Final = f"{_value('b', 'sectionName', '')} == a.sectionName"


class ParentReference(Fields):
    name: ObjectName
    """Name of the Gateway."""
    namespace: (
        Annotated[
            str,
            Field(min_length=1, max_length=63),
            matches(NAMESPACE_FORM.pattern, "must be the name of a namespace, such as gateways"),
        ]
        | None
    ) = None
    """Namespace of the Gateway. A listener of the Gateway must admit routes from the LLMService's
    namespace (allowedRoutes). Default: the LLMService's namespace."""
    kind: Literal["Gateway", "ListenerSet"] = "Gateway"
    """Kind of the object: a Gateway, or a ListenerSet, which adds listeners to a Gateway. Default:
    Gateway."""
    section_name: ObjectName | None = None
    """Name of a listener of the Gateway, such as https. Default: all listeners that admit the
    route."""

    @property
    def target(self) -> tuple[str, ...]:
        """Kind, namespace and name of the object to which the reference leads."""
        return (self.kind, self.namespace or "", self.name)


class Route(Fields):
    parent_refs: Annotated[
        tuple[ParentReference, ...],
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
    ]
    """Gateways, in the form of an HTTPRoute's parentRefs."""
    hostnames: Annotated[
        tuple[
            Annotated[
                str,
                Field(min_length=1, max_length=253),
                matches(
                    rf"([*][.])?{SUBDOMAIN_PATTERN}",
                    "must be a host name, such as chat.example.com or *.example.com",
                ),
            ],
            ...,
        ],
        Field(max_length=16, json_schema_extra=ATOMIC),
    ] = ()
    """Host names of the API at the Gateways. Give each service its own, because the paths of all
    services are the same. Default: every host name of the listeners."""

    rules: ClassVar = (
        Rule(
            "parentRefs",
            cel="self.parentRefs.all(a, self.parentRefs.filter(b, "
            f"{_SAME}).size() == 1 || (has(a.sectionName) && self.parentRefs.filter(b, {_SAME} && "
            f"(!has(b.sectionName) || {_SECTION})).size() == 1))",
            message="lists a Gateway twice: set another sectionName in each entry, or remove one",
            holds=lambda route: route.has_distinct_parents,
        ),
    )

    @property
    def has_distinct_parents(self) -> bool:
        """Whether no Gateway occurs twice, unless each entry names another listener."""
        sections: dict[tuple[str, ...], list[str | None]] = {}
        for each in self.parent_refs:
            sections.setdefault(each.target, []).append(each.section_name)
        return all(
            len(names) == 1 or (None not in names and len({*names}) == len(names))
            for names in sections.values()
        )
