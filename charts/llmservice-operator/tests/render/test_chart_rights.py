"""Tests that the operator, the metrics server and the users have every right they need, and no
other.
"""

from typing import Any

import pytest

from chart_support.helm import (
    METRICS_SERVER,
    NAMESPACE,
    RELEASE,
    Manifest,
    Values,
    find,
    is_of,
    render,
)
from rights_table import (
    READ,
    TRUST,
    WRITE,
    Right,
    lease_rights,
    metrics_api_rights,
    metrics_server_cluster_rights,
    metrics_server_peer_rights,
    metrics_server_rights,
    operator_lease_rights,
    operator_rights,
    rights_of,
    table,
    token_rights,
)
from value_sets import VALUE_SETS, rendered

Grants = dict[tuple[str, str | None], set[Right]]

READER = "extension-apiserver-authentication-reader"
"""Name of a Role that Kubernetes creates in kube-system. It grants read access to one ConfigMap."""


def grants(manifests: list[Manifest], component: str | None = None) -> Grants:
    """Return the rights of a component's account. The keys are (kind of binding, namespace)."""
    deployment = find(manifests, "Deployment", component=component)
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    subject: dict[str, Any] = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    given: Grants = {}
    for binding in manifests:
        if not binding["kind"].endswith("RoleBinding") or binding["subjects"] != [subject]:
            continue
        reference, namespace = binding["roleRef"], binding["metadata"].get("namespace")
        if (namespace, reference["name"]) == ("kube-system", READER):
            given["RoleBinding", namespace] = set()
            continue
        (role,) = (
            it
            for it in manifests
            if it["kind"] == reference["kind"]
            and it["metadata"]["name"] == reference["name"]
            and it["metadata"].get("namespace") == namespace
        )
        given.setdefault((binding["kind"], namespace), set()).update(rights_of(role["rules"]))
    return given


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_binding_is_for_one_of_the_two_accounts(name: str) -> None:
    manifests = rendered(name)
    accounts = {
        it["spec"]["template"]["spec"]["serviceAccountName"]
        for it in manifests
        if it["kind"] == "Deployment"
    }
    subjects = [it["subjects"] for it in manifests if it["kind"].endswith("RoleBinding")]

    assert all(len(it) == 1 and it[0]["name"] in accounts for it in subjects)
    namespace = VALUE_SETS[name].get("namespaceOverride", NAMESPACE)
    assert all(it[0]["namespace"] == namespace for it in subjects)


def test_the_operator_has_exactly_these_rights() -> None:
    assert grants(render()) == {
        ("ClusterRoleBinding", None): operator_rights() | metrics_api_rights(),
        ("RoleBinding", NAMESPACE): lease_rights(RELEASE),
    }


@pytest.mark.parametrize("value", ["metricsAPI", "metricsServer"])
def test_without_external_metrics_the_operator_has_no_right_on_their_api(value: str) -> None:
    given = grants(render({value: {"enabled": False}}))["ClusterRoleBinding", None]
    assert given == operator_rights()


def test_with_keda_the_operator_may_write_scaled_objects_too() -> None:
    given = grants(render({"keda": {"enabled": True}}))["ClusterRoleBinding", None]
    assert given == operator_rights(keda=True) | metrics_api_rights()


def test_the_metrics_server_has_exactly_these_rights() -> None:
    name = f"{RELEASE}-metrics-server"
    manifests = render()

    assert grants(manifests, METRICS_SERVER) == {
        ("ClusterRoleBinding", None): metrics_server_rights()
        | metrics_server_cluster_rights(name)
        | token_rights(),
        ("RoleBinding", "kube-system"): set(),
        ("RoleBinding", NAMESPACE): metrics_server_peer_rights() | operator_lease_rights(RELEASE),
    }


def test_with_watch_namespaces_the_metrics_server_has_roles_and_may_check_tokens() -> None:
    manifests = render({"watchNamespaces": ["team-a", "team-b"]})

    assert grants(manifests, METRICS_SERVER) == {
        ("RoleBinding", "team-a"): metrics_server_rights(),
        ("RoleBinding", "team-b"): metrics_server_rights(),
        ("ClusterRoleBinding", None): token_rights(),
        ("RoleBinding", NAMESPACE): metrics_server_peer_rights() | operator_lease_rights(RELEASE),
    }
    service = find(manifests, "Service", name=f"{RELEASE}-metrics-server")
    assert [it["port"] for it in service["spec"]["ports"]] == [8081, 8080]


def test_without_a_metrics_server_there_is_no_object_of_it() -> None:
    manifests = render({"metricsServer": {"enabled": False}})

    assert not [it for it in manifests if is_of(METRICS_SERVER, it)]
    env = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "LLMSERVICE_OPERATOR_METRICS_SERVER_URL", "value": ""} in env
    assert {"name": "LLMSERVICE_OPERATOR_METRICS_SERVER_PODS_HOST", "value": ""} in env


def test_with_watch_namespaces_the_operator_has_its_rights_only_there() -> None:
    manifests = render({"watchNamespaces": ["team-a", "team-b"]})

    assert grants(manifests) == {
        ("RoleBinding", "team-a"): operator_rights(),
        ("RoleBinding", "team-b"): operator_rights(),
        ("RoleBinding", NAMESPACE): lease_rights(RELEASE),
    }
    cluster_wide = [it for it in manifests if it["kind"].startswith("ClusterRole")]
    assert [it["metadata"]["name"] for it in cluster_wide] == [
        f"{RELEASE}-metrics-server-tokens.{NAMESPACE}"
    ] * 2


def test_without_tokens_a_release_for_some_namespaces_has_no_cluster_wide_right() -> None:
    values: Values = {"watchNamespaces": ["team-a"], "metricsServer": {"requireToken": False}}
    manifests = render(values)

    assert not [it for it in manifests if it["kind"].startswith("ClusterRole")]
    own = grants(manifests, METRICS_SERVER)["RoleBinding", NAMESPACE]
    assert own == metrics_server_peer_rights()


def test_with_watch_namespaces_users_get_the_same_rights_by_roles_there() -> None:
    roles = [
        (it["metadata"]["namespace"], it["metadata"]["name"], rights_of(it["rules"]))
        for it in render({"watchNamespaces": ["team-a", "team-b"]})
        if it["kind"] == "Role" and it["metadata"]["name"].endswith(("-view", "-edit"))
    ]

    assert sorted(roles, key=str) == [
        (namespace, f"{RELEASE}-{role}", table(rows))
        for namespace in ("team-a", "team-b")
        for role, rows in (("edit", WRITE), ("view", READ))
    ]


def test_without_external_metrics_nothing_is_granted_outside_of_the_services() -> None:
    manifests = render({"metricsAPI": {"enabled": False}})
    owner = f"{RELEASE}-metrics-server"

    assert grants(manifests, METRICS_SERVER) == {
        ("ClusterRoleBinding", None): metrics_server_rights() | token_rights(),
        ("RoleBinding", NAMESPACE): metrics_server_peer_rights() | operator_lease_rights(RELEASE),
    }
    # Kubernetes deletes the APIService with the role that owns it.
    assert owner not in [it["metadata"]["name"] for it in manifests if it["kind"] == "ClusterRole"]
    service = find(manifests, "Service", name=owner)
    assert [it["port"] for it in service["spec"]["ports"]] == [8081, 8080]


def test_the_operators_own_namespace_can_be_watched_too() -> None:
    assert grants(render({"watchNamespaces": [NAMESPACE]})) == {
        ("RoleBinding", NAMESPACE): operator_rights() | lease_rights(RELEASE)
    }


def test_the_lease_right_follows_the_lease_name_of_the_operator() -> None:
    manifests = render(release="blue")
    container = find(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    told = {it["name"]: it.get("value") for it in container["env"]}

    assert told["LLMSERVICE_OPERATOR_LEASE_NAME"] == "blue-llmservice-operator"
    assert grants(manifests)["RoleBinding", NAMESPACE] == lease_rights("blue-llmservice-operator")


@pytest.mark.parametrize("name", VALUE_SETS)
def test_no_rule_has_a_wildcard_or_reaches_a_secret(name: str) -> None:
    manifests = rendered(name)
    rights = {
        right
        for it in manifests
        if it["kind"] in ("Role", "ClusterRole")
        for right in rights_of(it["rules"])
    }

    assert not [right for right in rights if any("*" in part for part in right)]
    assert not [right for right in rights if right[:2] == ("", "secrets")]


def test_users_read_with_view_and_write_with_edit_and_admin() -> None:
    manifests = render()
    view = find(manifests, "ClusterRole", f"{RELEASE}-view")
    edit = find(manifests, "ClusterRole", f"{RELEASE}-edit")

    assert rights_of(view["rules"]) == table(READ)
    assert rights_of(edit["rules"]) == table(WRITE)
    assert aggregates_to(view) == {"view", "edit", "admin"}
    assert aggregates_to(edit) == {"edit", "admin"}


def test_administrators_of_a_namespace_may_trust_remote_code_and_grant_that_right() -> None:
    role = find(render(), "ClusterRole", f"{RELEASE}-trust-remote-code")

    assert rights_of(role["rules"]) == table(TRUST)
    assert aggregates_to(role) == {"admin"}


def test_without_user_roles_the_right_to_trust_remote_code_waits_for_a_binding() -> None:
    values = {"rbac": {"userRoles": False}}
    role = find(render(values), "ClusterRole", f"{RELEASE}-trust-remote-code")

    assert aggregates_to(role) == set()


def policy_objects(values: Values) -> list[tuple[str, str | None]]:
    return [
        (it["kind"], it["metadata"].get("namespace"))
        for it in render(values)
        if it["kind"].startswith("ValidatingAdmission")
        or it["metadata"]["name"].endswith("-trust-remote-code")
    ]


POLICY = [("ValidatingAdmissionPolicy", None), ("ValidatingAdmissionPolicyBinding", None)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [*POLICY, ("ClusterRole", None)]),
        ({"rbac": {"create": False}}, POLICY),
        ({"admissionPolicy": {"enabled": False}}, []),
        ({"watchNamespaces": ["a", "b"]}, [*POLICY, ("Role", "a"), ("Role", "b")]),
    ],
    ids=["by default", "without rbac", "switched off", "with watched namespaces"],
)
def test_the_admission_policy_comes_with_the_right_that_it_requires(
    values: Values, expected: list[tuple[str, str | None]]
) -> None:
    assert sorted(policy_objects(values), key=str) == sorted(expected, key=str)


def test_with_watch_namespaces_the_admission_policy_does_not_apply_elsewhere() -> None:
    binding = find(render({"watchNamespaces": ["a", "b"]}), "ValidatingAdmissionPolicyBinding")

    (chosen,) = binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"]
    assert chosen == {
        "key": "kubernetes.io/metadata.name",
        "operator": "In",
        "values": ["a", "b"],
    }
    assert "matchResources" not in find(render(), binding["kind"])["spec"]


def aggregates_to(role: Manifest) -> set[str]:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    labels = role["metadata"]["labels"]
    return {
        key.removeprefix(prefix)
        for key, value in labels.items()
        if key.startswith(prefix) and value == "true"
    }


def test_without_rbac_nothing_is_granted() -> None:
    kinds = {it["kind"] for it in render({"rbac": {"create": False}})}

    assert not [kind for kind in kinds if "Role" in kind]
