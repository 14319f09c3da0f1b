"""spec.template.affinity and topologySpreadConstraints: Kubernetes' own fields, typed and
bounded.

Fields that name other namespaces are left out, because a service depends on pods of its own
namespace only.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from llmservice_operator.api.fields import ATOMIC, Fields, Rule
from llmservice_operator.api.labels import LabelKey, LabelKeys, LabelSelector, LabelValue

_WHOLE_NUMBER: Final = re.compile("[0-9]{1,18}")

_MATCH_LABEL_KEYS: Final = (
    Rule(
        "matchLabelKeys",
        cel="!has(self.matchLabelKeys) || size(self.matchLabelKeys) == 0 || "
        "has(self.labelSelector)",
        message="requires labelSelector: set it or remove matchLabelKeys",
        holds=lambda self: not self.match_label_keys or self.label_selector is not None,
    ),
    Rule(
        "matchLabelKeys",
        cel="!has(self.matchLabelKeys) || !has(self.labelSelector) || "
        "!self.matchLabelKeys.exists(key, "
        "(has(self.labelSelector.matchLabels) && key in self.labelSelector.matchLabels) || "
        "(has(self.labelSelector.matchExpressions) && "
        "self.labelSelector.matchExpressions.exists(each, each.key == key)))",
        message="must not contain a key of labelSelector: remove it from one of the two",
        holds=lambda self: (
            self.label_selector is None
            or self.label_selector.keys.isdisjoint(self.match_label_keys)
        ),
    ),
)

Weight = Annotated[int, Field(ge=1, le=100)]


class NodeRequirement(Fields):
    key: LabelKey
    """Key of a node label, such as nvidia.com/gpu.product."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """Operator that compares the label's value with `values`."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32, json_schema_extra=ATOMIC)] = ()
    """Values for In and NotIn, or a single whole number for Gt and Lt; must be empty for the other
    operators."""

    rules: ClassVar = (
        Rule(
            "values",
            cel="(self.operator in ['In', 'NotIn', 'Gt', 'Lt']) == "
            "(has(self.values) && size(self.values) > 0)",
            message="is required by the operators In, NotIn, Gt and Lt and refused by the others",
            holds=lambda self: (self.operator in ("In", "NotIn", "Gt", "Lt")) == bool(self.values),
        ),
        Rule(
            "values",
            cel="!(self.operator in ['Gt', 'Lt']) || !has(self.values) || "
            "(size(self.values) == 1 && self.values[0].matches('^[0-9]{1,18}$'))",
            message="must be a single whole number for the operators Gt and Lt",
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
        Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
    ]
    """Requirements on the labels of a node, which must all be met."""


class NodeSelector(Fields):
    node_selector_terms: Annotated[
        tuple[NodeTerm, ...], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)
    ]
    """Terms; a node must meet at least one of them."""


class PreferredNodes(Fields):
    weight: Weight
    """Weight of the preference, added to the score of every node that meets it."""
    preference: NodeTerm
    """Requirements that a node should meet."""


class NodeAffinity(Fields):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Requirements that a node must meet to run a replica."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredNodes, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """Preferences. The scheduler adds the weights of the preferences that a node meets to the score
    of the node, and chooses the node with the highest score."""


class PodTerm(Fields):
    label_selector: LabelSelector | None = None
    """Pods in this namespace that the term refers to. Default: no pods."""
    topology_key: LabelKey
    """Key of a node label, such as kubernetes.io/hostname. Nodes with the same value form one
    domain."""
    match_label_keys: LabelKeys = ()
    """Label keys, such as pod-template-hash. The term refers only to pods whose labels with these
    keys have the values of the replica's own labels."""

    rules: ClassVar = _MATCH_LABEL_KEYS


class PreferredPods(Fields):
    weight: Weight
    """Weight of the preference, added to the score of every domain that meets it."""
    pod_affinity_term: PodTerm
    """Pods that the domain should have (podAffinity) or should not have (podAntiAffinity)."""


class PodAffinity(Fields):
    required_during_scheduling_ignored_during_execution: Annotated[
        tuple[PodTerm, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """Requirements, which must all be met."""
    preferred_during_scheduling_ignored_during_execution: Annotated[
        tuple[PreferredPods, ...], Field(max_length=8, json_schema_extra=ATOMIC)
    ] = ()
    """Preferences. The scheduler adds the weights of the preferences that a domain meets to the
    scores of its nodes, and chooses the node with the highest score."""


class Affinity(Fields):
    node_affinity: NodeAffinity | None = None
    """Placement by the labels of nodes."""
    pod_affinity: PodAffinity | None = None
    """Placement in the same domain as other pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Placement in a different domain from other pods."""


class TopologySpreadConstraint(Fields):
    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Maximum difference between the numbers of pods in any two domains."""
    topology_key: LabelKey
    """Key of a node label, such as topology.kubernetes.io/zone. Nodes with the same value form one
    domain."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """Behavior when no domain satisfies maxSkew. DoNotSchedule: the replica waits. ScheduleAnyway:
    the scheduler prefers the domains in which the skew is smallest."""
    label_selector: LabelSelector | None = None
    """Pods that are counted. Default: the pods of this LLMService and of the same revision."""
    match_label_keys: LabelKeys = ()
    """Label keys, such as pod-template-hash. A pod is counted only if its labels with these keys
    have the values of the replica's own labels."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Minimum number of domains. If there are fewer domains, the missing ones count as empty.
    Default: 1."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Treatment of nodes that do not match nodeSelector and nodeAffinity. Honor: they are left out.
    Ignore: they are included. Default: Honor."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Treatment of nodes with taints that the replica does not tolerate. Honor: they are left out.
    Ignore: they are included. Default: Ignore."""

    rules: ClassVar = (
        *_MATCH_LABEL_KEYS,
        Rule(
            "minDomains",
            cel="!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            message="requires whenUnsatisfiable DoNotSchedule: set that, or remove it",
            holds=lambda self: (
                self.min_domains is None or self.when_unsatisfiable == "DoNotSchedule"
            ),
        ),
    )
