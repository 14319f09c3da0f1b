"""What the operator and the users may do: the whole tables, rule by rule."""

from typing import Any

import pytest

from chart_support import NAMESPACE, RELEASE, Manifest, find, render
from rights_table import KEDA, OPERATOR, READ, WRITE, Right, lease_rights, rights_of, table
from value_sets import VALUE_SETS, rendered


def grants(manifests: list[Manifest]) -> dict[tuple[str, str | None], set[Right]]:
    """Rights by (kind of binding, namespace) that the operator's account is given."""
    account = find(manifests, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    given: dict[tuple[str, str | None], set[Right]] = {}
    for binding in manifests:
        if not binding["kind"].endswith("Binding"):
            continue
        subject: dict[str, Any] = {"kind": "ServiceAccount", "name": account}
        assert binding["subjects"] == [subject | {"namespace": NAMESPACE}]
        reference, namespace = binding["roleRef"], binding["metadata"].get("namespace")
        (role,) = (
            it
            for it in manifests
            if it["kind"] == reference["kind"]
            and it["metadata"]["name"] == reference["name"]
            and it["metadata"].get("namespace") == namespace
        )
        given.setdefault((binding["kind"], namespace), set()).update(rights_of(role["rules"]))
    return given


def test_the_operator_has_exactly_these_rights() -> None:
    assert grants(render()) == {
        ("ClusterRoleBinding", None): table(OPERATOR),
        ("RoleBinding", NAMESPACE): lease_rights(RELEASE),
    }


def test_with_keda_it_may_write_scaled_objects_too() -> None:
    given = grants(render({"keda": {"enabled": True}}))["ClusterRoleBinding", None]
    assert given == table(OPERATOR) | table(KEDA)


def test_with_watch_namespaces_it_has_them_there_and_nothing_cluster_wide() -> None:
    manifests = render({"watchNamespaces": ["team-a", "team-b"]})

    assert grants(manifests) == {
        ("RoleBinding", "team-a"): table(OPERATOR),
        ("RoleBinding", "team-b"): table(OPERATOR),
        ("RoleBinding", NAMESPACE): lease_rights(RELEASE),
    }
    assert not [it for it in manifests if it["kind"].startswith("ClusterRole")]


def test_its_own_namespace_can_be_watched_too() -> None:
    assert grants(render({"watchNamespaces": [NAMESPACE]})) == {
        ("RoleBinding", NAMESPACE): table(OPERATOR) | lease_rights(RELEASE)
    }


def test_the_lease_right_follows_the_lease_name_that_the_operator_is_told() -> None:
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
