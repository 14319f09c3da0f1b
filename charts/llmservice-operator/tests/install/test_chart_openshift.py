"""Tests the chart on an API server that looks like OpenShift's: it serves the same API group, and
refuses the pods that restricted-v2 refuses.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chart_support.cluster import (
    ADOPT,
    CRD,
    SMALLEST,
    Release,
    kubectl,
    operator_of,
    read_all,
    refusal,
)
from chart_support.helm import Manifest, render
from shared_support.waiting import eventually

CONSTRAINTS = "securitycontextconstraints.security.openshift.io"

CONSTRAINTS_CRD: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": CONSTRAINTS},
    "spec": {
        "group": "security.openshift.io",
        "names": {
            "kind": "SecurityContextConstraints",
            "plural": "securitycontextconstraints",
            "singular": "securitycontextconstraints",
        },
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }
        ],
    },
}

FIRST_ID, LAST_ID = 1000650000, 1000659999
"""Range of IDs that OpenShift assigns to a namespace."""


def is_allotted(field: str) -> str:
    """Return the CEL rule that is true if a field of the pod's security context is unset or in the
    range.
    """
    value = f"object.spec.securityContext.{field}"
    return f"!has({value}) || ({value} >= {FIRST_ID} && {value} <= {LAST_ID})"


def restricted_v2(release: Release) -> list[Manifest]:
    """Return a policy that refuses pods with IDs outside the range, and the policy's binding.

    The policy applies only to the namespace of the release.
    """
    here = {"matchLabels": {"kubernetes.io/metadata.name": release.name}}
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    checks = [
        {"expression": is_allotted(field), "message": f"{field} is not of the namespace"}
        for field in ("runAsUser", "fsGroup")
    ]
    group, name = "admissionregistration.k8s.io/v1", f"{release.name}-restricted-v2"
    return [
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
                "validations": checks,
            },
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        },
    ]


@pytest.fixture
def openshift(release: Release) -> Iterator[Release]:
    """Return a release whose namespace assigns the IDs of its pods."""
    policy = restricted_v2(release)
    kubectl("apply", "-f-", stdin=[CONSTRAINTS_CRD, *policy])
    try:
        kubectl("wait", "crd", CONSTRAINTS, "--for=condition=Established", "--timeout=30s")
        eventually(lambda: "runAsUser is not" in fixed_pod(release), 30, "the policy is in force")
        yield release
    finally:
        kubectl("delete", "--ignore-not-found", "-f-", stdin=[CONSTRAINTS_CRD, *policy])


def fixed_pod(release: Release) -> str:
    """Return the API server's error about a pod of the chart with `userIds: Fixed`; nothing is
    stored.
    """
    manifests = render({"userIds": "Fixed"}, release=release.name, namespace=release.name)
    (pod,) = (each for each in manifests if each["kind"] == "Pod")
    return refusal("create", "-n", release.name, "--dry-run=server", "-f-", stdin=pod)


def test_openshift_admits_the_pods_of_the_chart_and_of_services(
    openshift: Release, tmp_path: Path
) -> None:
    here = ("-n", openshift.name)

    def pods(label: str) -> list[Manifest]:
        return read_all("pods", *here, "-l", label)

    openshift.install({"watchNamespaces": [openshift.name]}, ADOPT)
    kubectl("wait", "crd", CRD, "--for=condition=Established", "--timeout=30s")

    with operator_of(openshift, tmp_path / "operator.log").until_leading():
        kubectl("create", *here, "-f-", stdin=SMALLEST)
        release = f"app.kubernetes.io/instance={openshift.name}"
        eventually(lambda: len(pods(release)) == 4, 30, "the pods of the release")
        eventually(lambda: len(pods("llmservice.dev/name=smollm2")) == 1, 30, "a model server")
