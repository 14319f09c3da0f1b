"""Tests the refusals of LLMService.parse about pods, network, budgets and rollouts, with their
exact messages.
"""

from typing import Any

import pytest

from operator_support.services import refusal_of

ROLLING_ONLY = "requires type RollingUpdate: remove it, or choose that type"


NO_DRAIN = (
    "must be less than the number of replicas, or nodes that run one can never be drained: lower "
    "it, raise the number of replicas, or remove it"
)


PEER = (
    "must be set alone: a peer is either an ipBlock, or pods selected by podSelector, "
    "namespaceSelector or both"
)


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


NODE_REQUIREMENT = (
    f"spec.template.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0]"
)


LABEL_VALUE = (
    "must be a label value: at most 63 letters, digits and . _ -, starting and ending with a "
    "letter or digit"
)


RESERVED_LABEL = (
    "has a label that the operator or Kubernetes sets: remove llmservice.dev/*, pod-template-hash "
    "and app.kubernetes.io/name, instance and managed-by"
)


APPARMOR = "container.apparmor.security.beta.kubernetes.io"


def node_affinity(requirement: dict[str, Any]) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}
    return {"template": {"affinity": {"nodeAffinity": {REQUIRED: terms}}}}


def spread(**fields: Any) -> dict[str, Any]:
    constraint = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    return {"template": {"topologySpreadConstraints": [{**constraint, **fields}]}}


REFUSED = {
    "limit of no time": (
        {"slo": {"itlMilliseconds": 0}},
        "spec.slo.itlMilliseconds: should be greater than or equal to 1, not 0",
    ),
    "amount in words": (
        {"resources": {"limits": {"memory": "lots"}}},
        "spec.resources.limits.memory: must be a quantity such as 4, 500m or 32Gi, with at most "
        "three decimals",
    ),
    "amount finer than a thousandth": (
        {"resources": {"limits": {"cpu": "0.0001"}}},
        "spec.resources.limits.cpu: must be a quantity such as 4, 500m or 32Gi, with at most "
        "three decimals",
    ),
    "amount beyond every node": (
        {"resources": {"limits": {"memory": "2Pi"}}},
        "spec.resources.limits.memory: must be at most 1Pi: no node has more",
    ),
    "amount with a fraction that is no text": (
        {"resources": {"limits": {"cpu": 0.25}}},
        'spec.resources.limits.cpu: must be a string when it has a fraction: write "0.25" in '
        "quotes, or 500m for 0.5",
    ),
    "amount that is a truth value": (
        {"resources": {"limits": {"cpu": True}}},
        "spec.resources.limits.cpu: should be a valid string, not True",
    ),
    "request above its limit": (
        {"resources": {"requests": {"memory": "1025Mi"}, "limits": {"memory": "1Gi"}}},
        "spec.resources.requests: exceed the limits for memory: raise limits.memory or lower "
        "requests.memory",
    ),
    "toleration of nothing": (
        {"template": {"tolerations": [{}]}},
        "spec.template.tolerations[0].operator: must be Exists when key is unset: set operator: "
        "Exists or key",
    ),
    "toleration that compares nothing": (
        {"template": {"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}},
        "spec.template.tolerations[0].value: has no effect with operator Exists: remove it or set "
        "operator: Equal",
    ),
    "toleration that ends for no reason": (
        {"template": {"tolerations": [{"key": "k", "tolerationSeconds": 1}]}},
        "spec.template.tolerations[0].tolerationSeconds: requires effect NoExecute: set that "
        "effect, or remove it",
    ),
    "node label that is none": (
        {"template": {"nodeSelector": {"a b": "v"}}},
        "spec.template.nodeSelector: has an invalid key: write one such as team or "
        "example.com/team",
    ),
    "node label with a blank in its value": (
        {"template": {"nodeSelector": {"a": "b c"}}},
        f"spec.template.nodeSelector.a: {LABEL_VALUE}",
    ),
    "label of the operator": (
        {"template": {"labels": {"llmservice.dev/name": "other"}}},
        f"spec.template.labels: {RESERVED_LABEL}",
    ),
    "label that picks the pods": (
        {"template": {"labels": {"app.kubernetes.io/managed-by": "me"}}},
        f"spec.template.labels: {RESERVED_LABEL}",
    ),
    "annotation that weakens the container": (
        {"template": {"annotations": {f"{APPARMOR}/server": "unconfined"}}},
        "spec.template.annotations: has an annotation that the operator sets or that weakens the "
        "container's security profile: remove it",
    ),
    "account in capitals": (
        {"template": {"serviceAccountName": "Me"}},
        "spec.template.serviceAccountName: must be a valid object name, such as gpu-high",
    ),
    "node requirement without values": (
        node_affinity({"key": "a", "operator": "In"}),
        f"{NODE_REQUIREMENT}.values: is required by the operators In, NotIn, Gt and Lt and "
        "refused by the others",
    ),
    "node requirement with values for nothing": (
        node_affinity({"key": "a", "operator": "Exists", "values": ["b"]}),
        f"{NODE_REQUIREMENT}.values: is required by the operators In, NotIn, Gt and Lt and "
        "refused by the others",
    ),
    "node requirement greater than a word": (
        node_affinity({"key": "a", "operator": "Gt", "values": ["b"]}),
        f"{NODE_REQUIREMENT}.values: must be a single whole number for the operators Gt and Lt",
    ),
    "pods in no place": (
        {"template": {"affinity": {"podAffinity": {REQUIRED: [{}]}}}},
        f"spec.template.affinity.podAffinity.{REQUIRED}[0].topologyKey: is required",
    ),
    "spread over what counts nothing": (
        spread(matchLabelKeys=["a"]),
        "spec.template.topologySpreadConstraints[0].matchLabelKeys: requires labelSelector: set "
        "it or remove matchLabelKeys",
    ),
    "spread by a label twice": (
        spread(matchLabelKeys=["a"], labelSelector={"matchLabels": {"a": "b"}}),
        "spec.template.topologySpreadConstraints[0].matchLabelKeys: must not contain a key of "
        "labelSelector: remove it from one of the two",
    ),
    "spread over a least number that binds nobody": (
        spread(minDomains=2),
        "spec.template.topologySpreadConstraints[0].minDomains: requires whenUnsatisfiable "
        "DoNotSchedule: set that, or remove it",
    ),
    "Service object of an unknown type": (
        {"service": {"type": "ExternalName"}},
        "spec.service.type: should be 'ClusterIP', 'NodePort' or 'LoadBalancer', not "
        "'ExternalName'",
    ),
    "Service object without a port": (
        {"service": {"port": 0}},
        "spec.service.port: should be greater than or equal to 1, not 0",
    ),
    "annotation with a blank": (
        {"service": {"annotations": {"a b": "c"}}},
        "spec.service.annotations: has an invalid key: write one such as team or example.com/team",
    ),
    "keys without a Secret": ({"auth": {}}, "spec.auth.apiKeysSecretRef: is required"),
    "keys in a Secret of no name": (
        {"auth": {"apiKeysSecretRef": {"key": "a"}}},
        "spec.auth.apiKeysSecretRef.name: is required",
    ),
    "keys of another namespace": (
        {"auth": {"apiKeysSecretRef": {"name": "other/keys"}}},
        "spec.auth.apiKeysSecretRef.name: must be the name of a Secret, such as hub-token",
    ),
    "key that is a path": (
        {"auth": {"apiKeysSecretRef": {"name": "keys", "key": "../a"}}},
        "spec.auth.apiKeysSecretRef.key: must consist of letters, digits and . _ -, such as "
        "HF_TOKEN",
    ),
    "surge where the operator decides": (
        {"rolloutStrategy": {"maxSurge": 1}},
        f"spec.rolloutStrategy.maxSurge: {ROLLING_ONLY}",
    ),
    "missing replicas where all go at once": (
        {"rolloutStrategy": {"type": "Recreate", "maxUnavailable": 1}},
        f"spec.rolloutStrategy.maxUnavailable: {ROLLING_ONLY}",
    ),
    "rollout that cannot begin": (
        {"rolloutStrategy": {"type": "RollingUpdate", "maxSurge": 0}},
        "spec.rolloutStrategy.maxUnavailable: must be at least 1 when maxSurge is 0, or no "
        "replica can ever be replaced",
    ),
    "rollout of an unknown type": (
        {"rolloutStrategy": {"type": "BlueGreen"}},
        "spec.rolloutStrategy.type: should be 'Auto', 'RollingUpdate' or 'Recreate', not "
        "'BlueGreen'",
    ),
    "deadline before anything could happen": (
        {"rolloutStrategy": {"progressDeadlineSeconds": 1}},
        "spec.rolloutStrategy.progressDeadlineSeconds: should be greater than or equal to 60, not "
        "1",
    ),
    "budget that says it twice": (
        {"replicas": 3, "podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}},
        "spec.podDisruptionBudget.maxUnavailable: cannot be combined with minAvailable: remove "
        "one of the two",
    ),
    "budget that lets nobody go": (
        {"podDisruptionBudget": {"maxUnavailable": "0%"}},
        "spec.podDisruptionBudget.maxUnavailable: must be at least 1, or nodes that run a replica "
        "can never be drained",
    ),
    "budget that is a word": (
        {"podDisruptionBudget": {"maxUnavailable": "half"}},
        "spec.podDisruptionBudget.maxUnavailable: must be a number of replicas such as 1, or a "
        "percentage such as 25%",
    ),
    "budget that keeps the only replica": (
        {"podDisruptionBudget": {"minAvailable": 1}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "budget that keeps every replica": (
        {"replicas": 3, "podDisruptionBudget": {"minAvailable": 3}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "budget that is rounded up to every replica": (
        {"replicas": 2, "podDisruptionBudget": {"minAvailable": "51%"}},
        f"spec.podDisruptionBudget.minAvailable: {NO_DRAIN}",
    ),
    "peer that is nobody": (
        {"networkPolicy": {"from": [{}]}},
        f"spec.networkPolicy.from[0].ipBlock: {PEER}",
    ),
    "peer that is two things": (
        {"networkPolicy": {"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        f"spec.networkPolicy.from[0].ipBlock: {PEER}",
    ),
    "peer without a length": (
        {"networkPolicy": {"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]}},
        "spec.networkPolicy.from[0].ipBlock.cidr: must be a CIDR range such as 10.0.0.0/8",
    ),
    "exception from something else": (
        {
            "networkPolicy": {
                "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["192.168.0.0/16"]}}]
            }
        },
        "spec.networkPolicy.from[0].ipBlock.except: must be parts of cidr, each smaller than the "
        "whole",
    ),
    "peers of no policy": (
        {"networkPolicy": {"enabled": False, "from": [{"podSelector": {}}]}},
        "spec.networkPolicy.from: has no effect without the NetworkPolicy: remove it, or remove "
        "enabled: false",
    ),
    "drain longer than a day": (
        {"termination": {"drainTimeoutSeconds": 86401}},
        "spec.termination.drainTimeoutSeconds: should be less than or equal to 86400, not 86401",
    ),
    "stop in the past": (
        {"termination": {"preStopSeconds": -1}},
        "spec.termination.preStopSeconds: should be greater than or equal to 0, not -1",
    ),
}


@pytest.mark.parametrize(("spec", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_setting_of_the_pods_is_refused_with_what_to_write_instead(
    spec: dict[str, Any], message: str
) -> None:
    assert refusal_of(spec) == message
