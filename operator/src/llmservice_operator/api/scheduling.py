"""spec.template.affinity and topologySpreadConstraints: Kubernetes' own fields, typed and bounded.

What names other namespaces is left out: a service looks at pods of its own namespace only.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import Fields, Rule
from llmservice_operator.api.labels import LabelKey, LabelKeys, LabelSelector, LabelValue

_ATOMIC = {"x-kubernetes-list-type": "atomic"}

_WHOLE_NUMBER: Final = re.compile("[0-9]{1,18}")

_MATCH_LABEL_KEYS: Final = (
    Rule(
        "matchLabelKeys",
        cel="!has(self.matchLabelKeys) || size(self.matchLabelKeys) == 0 || "
        "has(self.labelSelector)",
        message="works with labelSelector only: set it or remove matchLabelKeys",
        holds=lambda self: not self.match_label_keys or self.label_selector is not None,
    ),
    Rule(
        "matchLabelKeys",
        cel="!has(self.matchLabelKeys) || !has(self.labelSelector) || "
        "!self.matchLabelKeys.exists(key, "
        "(has(self.labelSelector.matchLabels) && key in self.labelSelector.matchLabels) || "
        "(has(self.labelSelector.matchExpressions) && "
        "self.labelSelector.matchExpressions.exists(each, each.key == key)))",
        message="must not hold a key of labelSelector: remove it from one of the two",
        holds=lambda self: (
            self.label_selector is None
            or self.label_selector.keys.isdisjoint(self.match_label_keys)
        ),
    ),
)

Weight = Annotated[int, Field(ge=1, le=100)]


class NodeRequirement(Fields):
    key: LabelKey
    """Key of a node's label, such as nvidia.com/gpu.product."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label's value is compared with values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32, json_schema_extra=_ATOMIC)] = ()
    """What In and NotIn compare with, or the one whole number for Gt and Lt; none for the
    others."""

    rules: ClassVar = (
        Rule(
            "values",
            cel="(self.operator in ['In', 'NotIn', 'Gt', 'Lt']) == "
            "(has(self.values) && size(self.values) > 0)",
            message="belongs to the operators In, NotIn, Gt and Lt, and each of these needs it",
            holds=lambda self: (self.operator in ("In", "NotIn", "Gt", "Lt")) == bool(self.values),
        ),
        Rule(
            "values",
            cel="!(self.operator in ['Gt', 'Lt']) || !has(self.values) || "
            "(size(self.values) == 1 && self.values[0].matches('^[0-9]{1,18}$'))",
            message="must be one whole number for the operators Gt and Lt",
            holds=lambda self: (
                self.operator not in ("Gt", "Lt")
                or not self.values
                or (len(self.values) == 1 and _WHOLE_NUMBER.fullmatch(self.values[0]) is not None)
            ),
        ),
    )


class NodeTerm(Fields):
    match_expressions: Annotated[
        tuple[NodeRequirement, ...],
        Field(min_length=1, max_length=8, json_schema_extra=_ATOMIC),
    ]
    """Requirements on the labels of a node, which must meet all of them."""


class NodeSelector(Fields):
    node_selector_terms: Annotated[
        tuple[NodeTerm, ...], Field(min_length=1, max_length=8, json_schema_extra=_ATOMIC)
    ]
    """A node must meet one of these."""


class PreferredNodes(Fields):
    weight: Weight
    """How much a node that meets the preference is preferred."""
    preference: NodeTerm
    """What a node should meet."""


class NodeAffinity(Fields):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """What a node must meet to take a replica."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodes, ...], Field(max_length=8, json_schema_extra=_ATOMIC)
    ] = ()
    """What a node should meet; the one with the largest sum of weights is chosen."""


class PodTerm(Fields):
    label_selector: LabelSelector | None = None
    """Which pods of this namespace are looked at. Default: none."""
    topology_key: LabelKey
    """Label of nodes; nodes of the same value are one place, such as kubernetes.io/hostname."""
    match_label_keys: LabelKeys = ()
    """Keys of the replica's own labels that the pods must share, such as pod-template-hash."""

    rules: ClassVar = _MATCH_LABEL_KEYS


class PreferredPods(Fields):
    weight: Weight
    """How much a place that meets the preference is preferred."""
    pod_affinity_term: PodTerm
    """Which pods the place should have, or not have."""


class PodAffinity(Fields):
    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodTerm, ...], Field(max_length=8, json_schema_extra=_ATOMIC)
    ] = ()
    """What must be so; all of these."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPods, ...], Field(max_length=8, json_schema_extra=_ATOMIC)
    ] = ()
    """What should be so; the place with the largest sum of weights is chosen."""


class Affinity(Fields):
    node_affinity: NodeAffinity | None = None
    """Which nodes, by their labels."""
    pod_affinity: PodAffinity | None = None
    """In the same place as which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """In another place than which pods."""


class TopologySpreadConstraint(Fields):
    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """How many pods more one place may have than another."""
    topology_key: LabelKey
    """Label of nodes; nodes of the same value are one place, such as
    topology.kubernetes.io/zone."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What happens when no place fits: the replica waits, or goes where it fits best."""
    label_selector: LabelSelector | None = None
    """Which pods are counted. Default: those of this LLMService and of one revision."""
    match_label_keys: LabelKeys = ()
    """Keys of the replica's own labels that the counted pods must share, such as
    pod-template-hash."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many places there must be, or those that are missing count as empty."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Whether only nodes that nodeSelector and nodeAffinity allow are counted. Default: Honor."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Whether nodes whose taints are not tolerated are left out. Default: Ignore."""

    rules: ClassVar = (
        *_MATCH_LABEL_KEYS,
        Rule(
            "minDomains",
            cel="!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            message="works with whenUnsatisfiable DoNotSchedule only: write that or remove it",
            holds=lambda self: (
                self.min_domains is None or self.when_unsatisfiable == "DoNotSchedule"
            ),
        ),
    )
